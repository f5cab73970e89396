"""Two hundred short prompts: a hundred in English and Chinese, and a hundred of the embedded model's world."""

import numpy as np

from nano.captions import short_caption
from nano.world import SMALL, sample_scene

ENGLISH = tuple(
    line.strip()
    for line in """
a cat
red car
two red boats
three yellow balloons over a city at night
a T-Rex relaxing on a beach, lying on a sun lounger and wearing sunglasses
portrait of Ada Lovelace
seven white horses
a shop window with a sign that says "OPEN 24 HOURS"
the Eiffel Tower in fog
a bowl of ramen with 2 eggs
an old fisherman mending a net
a blue door in a white wall
Sherlock Holmes playing the violin
a neon sign reading "MIDNIGHT DINER"
5 paper boats on a puddle
astronaut riding a horse
a black dog and a white cat
one green apple on a wooden table
a lighthouse in a storm
the word “Hello” written in sand
twelve candles on a chocolate cake
a girl with a pearl earring
a robot watering purple tulips
a golden retriever named Max
a street market in Marrakesh
watercolour of a fox in the snow
a steam train crossing a viaduct
a poster for 'Jazz Night'
a cup of coffee, morning light
four musicians in a subway station
a silver spoon and a red cherry
a knight facing a green dragon
macro photograph of a dewdrop
the number 42 painted on a garage door
a violinist in Vienna
a pair of brown leather boots
an isometric bakery
ten penguins in a row
a pink flamingo in a swimming pool
Mount Fuji at sunrise
a librarian with grey hair
a paper airplane over rooftops
six orange pumpkins on a porch
a treehouse in the rain
an empty theatre
a turquoise vintage scooter
a book titled "The Last Garden"
two children building a sandcastle
a hummingbird and a hibiscus
a Viking ship in a bottle
a yellow submarine
a chess game between two old men
an octopus playing 8 drums
a woman in a crimson coat
a mechanic's workshop
""".strip().splitlines()
)
CHINESE = tuple(
    line.strip()
    for line in """
一只猫
红色的汽车
两只红色的小船
三个黄色的气球飘在城市夜空
穿汉服的少女
七匹白马
写着“营业中”的木牌
雾中的埃菲尔铁塔
一碗拉面和2个鸡蛋
补网的老渔夫
白墙上的蓝色木门
孙悟空站在云上
霓虹灯招牌“深夜食堂”
5只纸船
宇航员骑马
黑狗和白猫
木桌上的一个青苹果
暴风雨中的灯塔
沙滩上写着「你好」
十二支蜡烛的蛋糕
戴珍珠耳环的少女
机器人给紫色郁金香浇水
名叫小黑的狗
苏州园林
雪中的狐狸，水彩画
蒸汽火车驶过高架桥
海报《爵士之夜》
清晨的一杯咖啡
地铁站里的四位乐手
银色的勺子和红樱桃
骑士面对绿色的龙
露珠特写
数字42画在车库门上
维也纳的小提琴家
一双棕色皮靴
十只企鹅排成一排
泳池里的粉色火烈鸟
日出时的富士山
灰发的图书管理员
六个橙色南瓜
雨中的树屋
空荡的剧院
两个孩子堆沙堡
李白月下独酌
黄色潜水艇
""".strip().splitlines()
)


def of_nanos_world(count: int = 100) -> tuple[str, ...]:
    """Short captions of random scenes, each another."""
    rng = np.random.default_rng(2026)
    found: dict[str, None] = {}
    while len(found) < count:
        found[short_caption(sample_scene(SMALL, rng), rng)] = None
    return tuple(found)
