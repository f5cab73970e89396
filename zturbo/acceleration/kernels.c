/* Transformer blocks, the picture decoder and small language models on a CPU, in C: what `native.py` compiles and
 * loads, `cpu.py` and the other native modules call.
 *
 * What holds everywhere:
 *
 * - A row (a token, a pixel) is computed by the same operations in the same order whatever the number of threads and
 *   however rows are shared out. Sums over k run from first to last; statistics over rows are summed over pieces of
 *   fixed size. So a picture is the same bytes on one thread and on many.
 * - One layout of weights for all processors: panels of 16 columns, k by k; AVX2 computes tiles of 6 rows, AVX-512 of
 *   12. Rows are read where they lie.
 * - Processors with AMX multiply bf16 and 8 bits in matrix tiles, of the same panels.
 * - Values between products are fp32. A product's operands are fp32, bf16, or integers with a scale per row and per
 *   column ("kinds" below); where a processor lacks an instruction, the same numbers come from others.
 *
 * Compile: cc -O3 -march=native -ffp-contract=fast -fPIC -shared -pthread kernels.c -lm. Needs AVX2 and FMA.
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PANEL 16 /* columns of a panel */

#ifdef __AVX512F__
#define W 16          /* floats of a vector */
#define MR 12         /* rows of a tile */
#define PANELS 2      /* side by side in a tile, where they are there: a load of a row's values serves both */
#define TALL 16       /* rows of a tile of one panel, where all panels are so */
#define VECTOR(x) __m512##x
#else
#define W 8
#define MR 6
#define PANELS 1
#define TALL MR
#define VECTOR(x) __m256##x
#endif
#define NV (PANEL / W) /* vectors of a panel's row */
#define KC 512         /* k of one pass over a panel: 32 KB in fp32; sums of I16 must become floats after it */
#define LONG_KC 2048   /* the same for BF16 and I8 */

typedef float vf __attribute__((vector_size(4 * W), aligned(4)));
typedef int32_t vi __attribute__((vector_size(4 * W), aligned(4)));
typedef uint32_t vu __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * W), aligned(2), may_alias));
typedef uint8_t bytes __attribute__((vector_size(W), aligned(1), may_alias));
typedef int64_t ll;

#define INLINE static inline __attribute__((always_inline))
#if W == 16
#define ALL(value) ((vf)_mm512_set1_ps(value))
#else
#define ALL(value) ((vf)_mm256_set1_ps(value))
#endif
#if W == 16 /* GCC 12 has several instructions where one will do */
#define LOW_HALVES(v) ((halves)_mm512_cvtepi32_epi16((__m512i)(v)))
#define LOW_BYTES(v) ((bytes)_mm512_cvtepi32_epi8((__m512i)(v)))
#else
#define LOW_HALVES(v) __builtin_convertvector(v, halves)
#define LOW_BYTES(v) __builtin_convertvector(v, bytes)
#endif
#define LOAD(p) (*(const vf *)(p))
#define STORE(p, v) (*(vf *)(p) = (v))

enum { F32 = 0, I16 = 1, BF16 = 2, I8 = 3 }; /* kinds of a product's operands */

static int max_int(int a, int b) { return a > b ? a : b; }
static int min_int(int a, int b) { return a < b ? a : b; }
static ll round_up(ll a, ll b) { return (a + b - 1) / b * b; }

/* ---- Threads: one pool for the process. Each of its threads begins with a stretch of the tasks that is its own, the
 * same part of them in every job, so that it mostly reads what it wrote in the job before and finds it in its own
 * cache; then it takes what others have left. No result depends on who computes what. A caller who finds the pool in use
 * works alone; a worker that wakes late is not waited for. ---- */

#define MOST_WORKERS 63
#define SPINS 16000 /* some 0.3 ms: longer than what lies between two calls of one picture */

typedef void (*Task)(void *context, int index, int slot);

static struct {
    pthread_mutex_t owner, door;
    pthread_cond_t news;
    int workers, allowed, tasks;
    Task task;
    void *context;
    atomic_int round; /* odd: a job is open */
    atomic_int inside, sleepers;
    struct {
        _Alignas(64) atomic_int next; /* task of the stretch */
    } stretches[MOST_WORKERS + 1];
} pool = {.owner = PTHREAD_MUTEX_INITIALIZER, .door = PTHREAD_MUTEX_INITIALIZER, .news = PTHREAD_COND_INITIALIZER};

/* Where part `part` of `parts` begins among `count` things. */
static int begin_of(int part, int parts, int count) { return (int)((ll)count * part / parts); }

static void take_tasks(int slot) {
    for (int i = 0; i < pool.allowed; i++) {
        const int part = (slot + i) % pool.allowed, end = begin_of(part + 1, pool.allowed, pool.tasks);
        atomic_int *next = &pool.stretches[part].next;
        for (int task; atomic_load(next) < end && (task = atomic_fetch_add(next, 1)) < end;)
            pool.task(pool.context, task, slot);
    }
}

static void *worker(void *own_slot) {
    const int slot = (int)(intptr_t)own_slot;
    for (int seen = 0;;) {
        int now = atomic_load(&pool.round);
        for (int spins = 0; (now == seen || !(now & 1)) && spins < SPINS; spins++) {
            _mm_pause();
            now = atomic_load(&pool.round);
        }
        if (now == seen || !(now & 1)) {
            pthread_mutex_lock(&pool.door);
            atomic_fetch_add(&pool.sleepers, 1);
            while ((now = atomic_load(&pool.round)) == seen || !(now & 1)) pthread_cond_wait(&pool.news, &pool.door);
            atomic_fetch_sub(&pool.sleepers, 1);
            pthread_mutex_unlock(&pool.door);
        }
        seen = now;
        atomic_fetch_add(&pool.inside, 1);
        if (atomic_load(&pool.round) == now && slot < pool.allowed)
            take_tasks(slot); /* still open: whoever closes it waits for us now */
        atomic_fetch_sub(&pool.inside, 1);
    }
    return NULL;
}

static void hire(int wanted) {
    for (; pool.workers < wanted; pool.workers++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, (void *)(intptr_t)(pool.workers + 1))) return;
        pthread_detach(thread);
    }
}

/* Run task(context, 0..tasks-1, slot), slot < threads naming the thread that runs it. */
static void share(int threads, int tasks, Task task, void *context) {
    threads = min_int(min_int(threads, tasks), MOST_WORKERS + 1);
    if (threads <= 1 || pthread_mutex_trylock(&pool.owner)) {
        for (int i = 0; i < tasks; i++) task(context, i, 0);
        return;
    }
    hire(threads - 1);
    pool.allowed = threads, pool.tasks = tasks, pool.task = task, pool.context = context;
    for (int i = 0; i < threads; i++) atomic_store(&pool.stretches[i].next, begin_of(i, threads, tasks));
    atomic_fetch_add(&pool.round, 1);
    if (atomic_load(&pool.sleepers)) {
        pthread_mutex_lock(&pool.door);
        pthread_cond_broadcast(&pool.news);
        pthread_mutex_unlock(&pool.door);
    }
    take_tasks(0);
    atomic_fetch_add(&pool.round, 1);
    for (int spins = 0; atomic_load(&pool.inside); spins++)
        if (spins < SPINS) _mm_pause(); else sched_yield();
    pthread_mutex_unlock(&pool.owner);
}

/* A child of fork() has none of its parent's workers, and must not wait at their locks. */
static void forget_workers(void) {
    pthread_mutex_init(&pool.owner, NULL), pthread_mutex_init(&pool.door, NULL), pthread_cond_init(&pool.news, NULL);
    pool.workers = 0;
    atomic_store(&pool.round, 0), atomic_store(&pool.inside, 0), atomic_store(&pool.sleepers, 0);
}
__attribute__((constructor)) static void on_load(void) { pthread_atfork(NULL, NULL, forget_workers); }

/* ---- Working memory: a few pieces are kept from call to call, because the first touch of fresh pages costs as much
 * time as the arithmetic on them. A piece's first 64 bytes hold its size. ---- */

#define PIECES_KEPT 4
#define MOST_KEPT (32 << 20)

static _Atomic(char *) kept[PIECES_KEPT];

/* Memory of so many bytes, aligned to 64, not zeroed; NULL where there is none. */
static char *borrow(ll bytes) {
    for (int i = 0; i < PIECES_KEPT; i++) {
        char *piece = atomic_exchange(&kept[i], NULL);
        if (piece && *(ll *)piece >= bytes) return piece + 64;
        free(piece);
    }
    char *piece = aligned_alloc(64, round_up(bytes, 64) + 64);
    if (!piece) return NULL;
    *(ll *)piece = bytes;
    return piece + 64;
}

static void hand_back(char *memory) {
    char *piece = memory - 64;
    for (int i = 0; i < PIECES_KEPT && *(ll *)piece <= MOST_KEPT; i++) {
        char *empty = NULL;
        if (atomic_compare_exchange_strong(&kept[i], &empty, piece)) return;
    }
    free(piece);
}

/* Ask for large pages, which are touched for the first time at a fraction of the cost; nothing else depends on it. */
void zt_large_pages(char *memory, ll bytes) {
    const uintptr_t begin = ((uintptr_t)memory + 4095) & ~4095ULL, end = ((uintptr_t)memory + bytes) & ~4095ULL;
    if (end > begin) madvise((void *)begin, end - begin, MADV_HUGEPAGE);
}

/* ---- Vectors ---- */

INLINE float sum_of(vf v) {
    float sum = v[0];
    for (int i = 1; i < W; i++) sum += v[i];
    return sum;
}

INLINE float max_of(vf v) {
    float most = v[0];
    for (int i = 1; i < W; i++) most = v[i] > most ? v[i] : most;
    return most;
}

INLINE vf larger(vf a, vf b) {
#if W == 16
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#endif
}

/* The upper halves are the values in bf16, to nearest, ties to even. */
INLINE vu rounded(vf x) {
    vu bits = (vu)x;
    return bits + 0x7fff + ((bits >> 16) & 1);
}

/* fp32 to bf16, a multiple of W of them; may be done in place. */
INLINE void to_bf16(const float *x, int count, void *to) {
    for (int i = 0; i < count; i += W)
        *(halves *)((char *)to + 2 * i) = LOW_HALVES(rounded(LOAD(x + i)) >> 16);
}

INLINE vf smaller(vf a, vf b) {
#if W == 16
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#endif
}

/* e^x to 2 units in the last place: 2^n from the exponent's bits, e^r for |r| <= ln 2 / 2 as a polynomial (Cephes). */
INLINE vf exp_of(vf x) {
    x = larger(ALL(-87.0f), smaller(ALL(88.0f), x)); /* in this order NaN stays NaN */
    vf shifted = x * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: the sum's low bits are round(x / ln 2) */
    vf n = shifted - 12582912.0f;
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (vf)(((vi)shifted << 23) + (127 << 23));
}

/* 2^x for x <= 125 to 3e-6, where the result is rounded to bf16: 2^n is added to the exponent of 2^r, |r| <= 1/2. */
INLINE vf power_of_2(vf x) {
    x = larger(ALL(-125.0f), x); /* in this order NaN stays NaN */
    vf shifted = x + 12582912.0f, r = x - (shifted - 12582912.0f);
    vf p = r * 0.0095700862f + 0.0559178591f;
    p = p * r + 0.240247452f;
    p = p * r + 0.693121815f;
    p = p * r + 0.999999261f;
    return (vf)((vi)p + ((vi)shifted << 23));
}
/* The same to 6e-5 for what is rounded to bf16 or 8 bits afterwards. */
INLINE vf rough_silu(vf x) {
    vf divisor = 1.0f + power_of_2(smaller(ALL(125.0f), x * -1.44269504f));
#if W == 16
    return x * (vf)_mm512_rcp14_ps((__m512)divisor);
#else
    return x / divisor;
#endif
}
INLINE vf silu(vf x) {
    vf divisor = 1.0f + exp_of(-x);
#if W == 16 /* its reciprocal to 14 bits and one step of Newton's; a division takes several times as long */
    vf over = (vf)_mm512_rcp14_ps((__m512)divisor);
    return x * (over * (2.0f - divisor * over));
#else
    return x / divisor;
#endif
}

/* ---- The tile: R rows times P panels. Segments: k runs over `segments` stretches of `k` values that lie `stride`
 * apart in a row's memory, and one after another in the panel; a 3x3 convolution reads three rows of pixels so.
 * out = sum [* row_scale * column_scale] + before + bias. ---- */

typedef struct {
    const void *a, *panel;
    ll row, stride; /* from row to row, from segment to segment of `a`, in operands */
    ll apart;       /* bytes from panel to panel */
    int segments, k; /* k in operands: in pairs (I16, BF16: 4 bytes of 2) or fours (I8) it is a multiple of them */
    const float *row_scale, *column_scale; /* integers only */
    const int32_t *sums;                   /* I8: of a column's weights, as rows were stored + 128; NULL: as if 0 */
    const float *before, *bias;            /* NULL: nothing */
    ll before_row, out_row;
    float *out;
} Tile;

INLINE void put(const Tile *t, int r, int v, vf sum) {
    if (t->before) sum += LOAD(t->before + r * t->before_row + v * W);
    if (t->bias) sum += LOAD(t->bias + v * W);
    STORE(t->out + r * t->out_row + v * W, sum);
}

/* As the intrinsics of the same names, for which GCC 12 moves the tile's sums to memory and back. */
#define ACCUMULATE(NAME, sum, a, b) \
    __asm__(NAME " %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); \
    return sum

/* Four bytes of a row's operands for all columns, times the panel's four bytes per column, added in 32 bits. */
INLINE VECTOR(i) dot_i16(VECTOR(i) sum, VECTOR(i) a, VECTOR(i) b) {
#if defined(__AVX512VNNI__) && W == 16
    ACCUMULATE("vpdpwssd", sum, a, b);
#elif W == 16
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
#endif
}

/* Unsigned rows times signed weights. */
INLINE VECTOR(i) dot_i8(VECTOR(i) sum, VECTOR(i) a, VECTOR(i) b) {
#if defined(__AVX512VNNI__) && W == 16
    ACCUMULATE("vpdpbusd", sum, a, b);
#elif W == 16 /* the same sums in 16 bits: even bytes, then odd ones */
    VECTOR(i) low = _mm512_set1_epi16(255);
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_and_si512(a, low), _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8)));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_srli_epi16(a, 8), _mm512_srai_epi16(b, 8)));
#else
    VECTOR(i) low = _mm256_set1_epi16(255);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_and_si256(a, low), _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8)));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8)));
#endif
}

INLINE vf dot_bf16(vf sum, VECTOR(i) a, VECTOR(i) b) {
#if defined(__AVX512BF16__) && W == 16
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#elif W == 16 /* bf16 is the upper half of an fp32 */
    VECTOR(i) high = _mm512_set1_epi32((int)0xffff0000);
    sum += (vf)_mm512_and_si512(a, high) * (vf)_mm512_and_si512(b, high);
    return sum + (vf)_mm512_slli_epi32(a, 16) * (vf)_mm512_slli_epi32(b, 16);
#else
    VECTOR(i) high = _mm256_set1_epi32((int)0xffff0000);
    sum += (vf)_mm256_and_si256(a, high) * (vf)_mm256_and_si256(b, high);
    return sum + (vf)_mm256_slli_epi32(a, 16) * (vf)_mm256_slli_epi32(b, 16);
#endif
}

INLINE vf dot_f32(vf sum, VECTOR(i) a, VECTOR(i) b) { return sum + (vf)a * (vf)b; }

#if W == 16
#define LOAD_BYTES(p) _mm512_loadu_si512((const void *)(p))
#define ALL_BYTES(p) _mm512_set1_epi32(*(const int32_t *)(p))
#define TO_FLOATS(v) ((vf)_mm512_cvtepi32_ps(v))
#define NO_BYTES _mm512_setzero_si512()
#else
#define LOAD_BYTES(p) _mm256_loadu_si256((const __m256i *)(p))
#define ALL_BYTES(p) _mm256_set1_epi32(*(const int32_t *)(p))
#define TO_FLOATS(v) ((vf)_mm256_cvtepi32_ps(v))
#define NO_BYTES _mm256_setzero_si256()
#endif

/* Row r of a tile, from pointers to every fifth row: what one address of an instruction can say. */
INLINE const char *row_of(const char *const *fifths, ll row, ll thrice, int r) {
    return fifths[r / 5] + (r % 5 == 3 ? thrice : r % 5 * row);
}

/* The tile for operands of SIZE bytes, which are multiplied four bytes at a time. */
#define TILE(NAME, SIZE, DOT, SUM, ZERO, RESULT) \
    INLINE void NAME(const int R, const int P, const Tile *t) { \
        SUM sums[TALL][PANELS * NV]; \
        _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) for (int v = 0; v < P * NV; v++) sums[r][v] = ZERO; \
        const char *b = t->panel; \
        const ll row = t->row * SIZE, thrice = 3 * row; \
        for (int s = 0; s < t->segments; s++) { \
            const char *fifths[4]; \
            for (int i = 0; i < 4; i++) fifths[i] = (const char *)t->a + s * t->stride * SIZE + 5 * i * row; \
            for (int k = 0; k < t->k * SIZE; k += 4, b += 4 * PANEL) { \
                VECTOR(i) columns[PANELS * NV]; \
                for (int v = 0; v < P * NV; v++) columns[v] = LOAD_BYTES(b + v / NV * t->apart + v % NV * 4 * W); \
                /* the compiler would keep a pointer for every row, more than there are registers */ \
                __asm__("" : "+r"(fifths[0]), "+r"(fifths[1]), "+r"(fifths[2]), "+r"(fifths[3])); \
                _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) { \
                    VECTOR(i) one = ALL_BYTES(row_of(fifths, row, thrice, r)); \
                    for (int v = 0; v < P * NV; v++) sums[r][v] = DOT(sums[r][v], one, columns[v]); \
                } \
                for (int i = 0; i < 4; i++) fifths[i] += 4; \
            } \
        } \
        _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) for (int v = 0; v < P * NV; v++) put(t, r, v, RESULT); \
    }
#define SCALED (TO_FLOATS(sums[r][v]) * (t->row_scale[r] * LOAD(t->column_scale + v * W)))
TILE(tile_f32, 4, dot_f32, vf, (vf){}, sums[r][v])
#define SHIFT (t->sums ? (VECTOR(i))(*(const vi *)(t->sums + v * W) * -128) : NO_BYTES)
TILE(tile_i16, 2, dot_i16, VECTOR(i), NO_BYTES, SCALED)
TILE(tile_bf16, 2, dot_bf16, vf, (vf){}, sums[r][v])
TILE(tile_i8, 1, dot_i8, VECTOR(i), SHIFT, SCALED)

/* One function for each height and width, so that sums stay in registers. */
#define NARROW(R, NAME) static void NAME##_##R(const Tile *t) { NAME(R, 1, t); }
#define HEIGHT(R, NAME) NARROW(R, NAME) static void NAME##_wide_##R(const Tile *t) { NAME(R, PANELS, t); }
#define LOW_HEIGHTS(NAME) HEIGHT(1, NAME) HEIGHT(2, NAME) HEIGHT(3, NAME) HEIGHT(4, NAME) HEIGHT(5, NAME) HEIGHT(6, NAME)
#define LOW(NAME) NAME##_1, NAME##_2, NAME##_3, NAME##_4, NAME##_5, NAME##_6
#if W == 16
#define HEIGHTS(NAME) LOW_HEIGHTS(NAME) \
    HEIGHT(7, NAME) HEIGHT(8, NAME) HEIGHT(9, NAME) HEIGHT(10, NAME) HEIGHT(11, NAME) HEIGHT(12, NAME) \
    NARROW(13, NAME) NARROW(14, NAME) NARROW(15, NAME) NARROW(16, NAME)
#define WIDE(NAME) {LOW(NAME), NAME##_7, NAME##_8, NAME##_9, NAME##_10, NAME##_11, NAME##_12}
#define TABLE(NAME) {LOW(NAME), NAME##_7, NAME##_8, NAME##_9, NAME##_10, NAME##_11, NAME##_12, \
    NAME##_13, NAME##_14, NAME##_15, NAME##_16}
#else
#define HEIGHTS(NAME) LOW_HEIGHTS(NAME)
#define WIDE(NAME) {LOW(NAME)}
#define TABLE WIDE
#endif
HEIGHTS(tile_f32) HEIGHTS(tile_i16) HEIGHTS(tile_bf16) HEIGHTS(tile_i8)
static void (*const TILES[4][TALL])(const Tile *) = {TABLE(tile_f32), TABLE(tile_i16), TABLE(tile_bf16), TABLE(tile_i8)};
static void (*const WIDE_TILES[4][MR])(const Tile *) = {
    WIDE(tile_f32_wide), WIDE(tile_i16_wide), WIDE(tile_bf16_wide), WIDE(tile_i8_wide)};

/* Rows up to MR, or up to TALL of one panel. */
INLINE void run_tile(int kind, int panels, int rows, const Tile *t) {
    if (panels > 1) WIDE_TILES[kind][rows - 1](t);
    else TILES[kind][rows - 1](t);
}

/* ---- Products: packed weights, made by `native.pack` ---- */

typedef struct {
    const void *panels;  /* (panels, k, 16) F32; (panels, k/2, 16, 2) I16, BF16; (panels, k/4, 16, 4) I8 */
    const float *scales; /* of columns, (panels * 16) for integers */
    const int32_t *sums; /* I8: of a column's weights per pass over k, (passes, panels * 16): rows are stored + 128 */
    int32_t kind, k, count; /* k a multiple of 16; count of panels */
} Weights;

static const int SIZES[4] = {4, 2, 2, 1}, PASSES[4] = {KC, KC, LONG_KC, LONG_KC};

/* Largest magnitude among vectors; NaN where a value is not finite, which no maximum and no integer would tell. */
typedef struct {
    vf most, none;
} Largest;

INLINE void look_at(Largest *l, vf v) {
    l->most = larger(l->most, (vf)((vi)v & 0x7fffffff));
    l->none += v - v;
}

/* Values as integers, a multiple of W of them, and their scale; I8 are stored + 128. */
static float to_integers(int kind, const float *x, ll count, const Largest *l, void *to) {
    const float limit = kind == I16 ? 2047.0f : 127.0f, largest = max_of(l->most);
    const float factor = largest > 1e-30f ? limit / largest : 0.0f;
    for (ll i = 0; i < count; i += W) { /* the low bits of 1.5 * 2^23 + v are round(v) */
        vi bits = (vi)(LOAD(x + i) * factor + 12582912.0f);
        if (kind == I16) *(halves *)((int16_t *)to + i) = LOW_HALVES(bits);
        else *(bytes *)((uint8_t *)to + i) = LOW_BYTES(bits + 128);
    }
    return largest / limit + sum_of(l->none);
}

/* Rows as a product of this kind reads them; F32 rows are read where they lie. `room` holds rows * k operands. */
static const void *operands(int kind, const float *rows, ll row, int count, int k, void *room, float *scales) {
    if (kind == F32) return rows;
    for (int r = 0; r < count; r++) {
        const float *x = rows + r * row;
        char *to = (char *)room + (ll)r * k * SIZES[kind];
        if (kind == BF16) {
            to_bf16(x, k, to);
            continue;
        }
        Largest l = {};
        for (int i = 0; i < k; i += W) look_at(&l, LOAD(x + i));
        scales[r] = to_integers(kind, x, k, &l, to);
    }
    return room;
}

typedef void (*After)(void *context, int panel);

/* Where a panel of a product's result begins in rows of this width; see `product`. */
INLINE int place_of(int panel, ll out_row) { return (out_row == PANELS * PANEL ? panel % PANELS : panel) * PANEL; }

/* ---- Products in matrix tiles (Intel AMX), where the processor has them: the same operands and panels, 16 rows of 64
 * bytes times 16 columns at a time. ---- */

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define AMX
#define TILE_ROWS 16
#define TILE_BYTES 64 /* of a row of operands; 1024 bytes of a panel stand against it */
enum { SUMS = 3 };    /* tiles of sums at once: as many as hide a product's latency */
enum { SQUARE = 4 * TILE_ROWS * PANEL, TALLEST = 192 };    /* sums of 32 rows and two panels; rows of squares at once */
enum { PIECE = 8, DEEPEST = 96, AHEAD = 3 }; /* tiles of k: in the first cache, in the second; 64 bytes read ahead a tile */

static int tiles_allowed;
#define IN_TILES(kind) (tiles_allowed && ((kind) == BF16 || (kind) == I8))
__attribute__((constructor)) static void ask_for_tiles(void) { /* Linux saves their registers only for who asks */
    const int request = 0x1023, tile_data = 18;             /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    tiles_allowed = syscall(SYS_arch_prctl, request, tile_data) == 0;
}

typedef struct {
    uint8_t palette, start, zeros[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} Shapes;

/* Tiles 0 to 2 sums, 3 rows, 4 panel; 5 and 6 rows and panel where less than 64 bytes of a row are left. */
static void shape_tiles(int height, int tail) {
    Shapes s = {.palette = 1, .bytes = {64, 64, 64, 64, 64, (uint16_t)tail, 64},
                .rows = {height, height, height, height, 16, height, tail / 4}};
    if (!tail) s.bytes[5] = s.bytes[6] = s.rows[5] = s.rows[6] = 0;
    __asm__ volatile("" ::"r"(&s) : "memory"); /* the intrinsic does not say that it reads all of it */
    _tile_loadconfig(&s);
}

#define MULTIPLY(SUM, ROWS, COLUMNS) \
    _tile_loadd(ROWS, a[SUM] + at, row); \
    if (bf16) _tile_dpbf16ps(SUM, ROWS, COLUMNS); \
    else _tile_dpbusd(SUM, ROWS, COLUMNS)
/* One stretch of k for all N tiles of rows. */
#define STRETCH(ROWS, COLUMNS) \
    _tile_loadd(COLUMNS, b, TILE_BYTES); \
    MULTIPLY(0, ROWS, COLUMNS); \
    if (N > 1) { MULTIPLY(1, ROWS, COLUMNS); } \
    if (N > 2) { MULTIPLY(2, ROWS, COLUMNS); }

/* N times 16 rows, from `a`, times one panel; bytes of k in each of a tile's segments: 64 * whole + tail. */
INLINE void multiply_tiles(const int N, const int bf16, const char *const *a, const Tile *t, int size, int whole, int tail,
                           void *sums) {
    const ll row = t->row * size;
    const char *b = t->panel;
    __asm__ volatile("" ::: "memory"); /* nor do loads of tiles say what they read */
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    for (int s = 0; s < t->segments; s++) {
        ll at = s * t->stride * size;
        for (int k = 0; k < whole; k++, at += TILE_BYTES, b += TILE_BYTES * PANEL) {
            STRETCH(3, 4)
        }
        if (!tail) continue;
        STRETCH(5, 6)
        b += tail * PANEL;
    }
    _tile_stored(0, sums, TILE_BYTES);
    if (N > 1) _tile_stored(1, (char *)sums + 1024, TILE_BYTES);
    if (N > 2) _tile_stored(2, (char *)sums + 2048, TILE_BYTES);
}

/* A `Tile` of any number of rows after `shape_tiles`; `shift` is taken off integer sums. The last rows are multiplied
 * together with some before them, which are done already: every row's result is its own, whatever its company. */
static void rows_in_tiles(int kind, int rows, const Tile *t, vi shift) {
    const int size = SIZES[kind], bf16 = kind == BF16, height = min_int(TILE_ROWS, rows);
    const int whole = t->k * size / TILE_BYTES, tail = t->k * size % TILE_BYTES;
    for (int r = 0; r < rows; r += SUMS * TILE_ROWS) {
        int32_t sums[SUMS * TILE_ROWS * PANEL] __attribute__((aligned(64)));
        int starts[SUMS];
        const char *at[SUMS];
        const int n = min_int(SUMS, (rows - r + TILE_ROWS - 1) / TILE_ROWS);
        for (int i = 0; i < n; i++) {
            starts[i] = min_int(r + i * TILE_ROWS, rows - height);
            at[i] = (const char *)t->a + starts[i] * t->row * size;
        }
        if (bf16 && n == 3) multiply_tiles(3, 1, at, t, size, whole, tail, sums);
        else if (bf16 && n == 2) multiply_tiles(2, 1, at, t, size, whole, tail, sums);
        else if (bf16) multiply_tiles(1, 1, at, t, size, whole, tail, sums);
        else if (n == 3) multiply_tiles(3, 0, at, t, size, whole, tail, sums);
        else if (n == 2) multiply_tiles(2, 0, at, t, size, whole, tail, sums);
        else multiply_tiles(1, 0, at, t, size, whole, tail, sums);
        for (int i = 0; i < n; i++)
            for (int one = r + i * TILE_ROWS; one < starts[i] + height; one++) {
                const vi sum = *(const vi *)(sums + (i * TILE_ROWS + one - starts[i]) * PANEL);
                put(t, one, 0, bf16 ? (vf)sum
                                    : __builtin_convertvector(sum - shift, vf) * (t->row_scale[one] * LOAD(t->column_scale)));
            }
    }
}

/* Tiles 0 to 3 sums, of two tiles of rows times two panels; 4 and 7 rows, 5 and 6 panels. */
static void shape_squares(void) {
    Shapes s = {.palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    __asm__ volatile("" ::"r"(&s) : "memory");
    _tile_loadconfig(&s);
}

/* 32 rows times two panels, of whole tiles: a load for each product, where a panel alone takes four for three. What is
 * read next comes nearer meanwhile, from both panels. */
INLINE void multiply_square(const int bf16, const char *const *a, ll row, const char *b, ll apart, int steps,
                            const char *ahead) {
    for (int k = 0; k < steps; k++, b += TILE_BYTES * PANEL) {
        for (int line = 0; line < AHEAD; line++, ahead += 64) {
            __builtin_prefetch(ahead, 0, 2);
            __builtin_prefetch(ahead + apart, 0, 2);
        }
        _tile_loadd(5, b, TILE_BYTES);
        _tile_loadd(4, a[0] + k * TILE_BYTES, row);
        _tile_loadd(6, b + apart, TILE_BYTES);
        _tile_loadd(7, a[1] + k * TILE_BYTES, row);
        if (bf16) {
            _tile_dpbf16ps(0, 4, 5);
            _tile_dpbf16ps(1, 4, 6);
            _tile_dpbf16ps(2, 7, 5);
            _tile_dpbf16ps(3, 7, 6);
        } else {
            _tile_dpbusd(0, 4, 5);
            _tile_dpbusd(1, 4, 6);
            _tile_dpbusd(2, 7, 5);
            _tile_dpbusd(3, 7, 6);
        }
    }
}

/* The square's sums from where they were left, `lines` apart: rows at `upper` and `lower`, panels side by side. */
INLINE void load_square(const float *upper, const float *lower, ll beside, ll lines) {
    _tile_loadd(0, upper, lines);
    _tile_loadd(1, upper + beside, lines);
    _tile_loadd(2, lower, lines);
    _tile_loadd(3, lower + beside, lines);
}

/* As `rows_in_tiles`, for two panels that lie `apart` and 16 to TALLEST rows, after `shape_squares`. A piece of both
 * panels stays in the first cache for all rows, whose sums wait in memory; `begun`: for the first, in `out`. */
static void rows_in_squares(int kind, int rows, const Tile *t, const vi *shift, int begun) {
    const int size = SIZES[kind], bf16 = kind == BF16, whole = t->k * size / TILE_BYTES, squares = (rows + 31) / 32;
    const ll row = t->row * size;
    float sums[TALLEST / 32 * SQUARE] __attribute__((aligned(64)));
    for (int k = 0; k < whole; k += PIECE) {
        const int steps = min_int(PIECE, whole - k);
        const char *b = (const char *)t->panel + (ll)k * TILE_BYTES * PANEL;
        const char *next = k + PIECE < whole ? b + PIECE * TILE_BYTES * PANEL : (const char *)t->panel + 2 * t->apart;
        for (int i = 0; i < squares; i++) {
            const int starts[2] = {min_int(32 * i, rows - TILE_ROWS), min_int(32 * i + TILE_ROWS, rows - TILE_ROWS)};
            const char *from = (const char *)t->a + k * TILE_BYTES, *at[2] = {from + starts[0] * row, from + starts[1] * row};
            float *own = sums + i * SQUARE;
            __asm__ volatile("" ::: "memory");
            if (k) load_square(own, own + SQUARE / 2, SQUARE / 4, TILE_BYTES);
            else if (begun) load_square(t->out + starts[0] * t->out_row, t->out + starts[1] * t->out_row, PANEL, 4 * t->out_row);
            else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            if (bf16) multiply_square(1, at, row, b, t->apart, steps, next + (ll)i * steps * AHEAD * 64);
            else multiply_square(0, at, row, b, t->apart, steps, next + (ll)i * steps * AHEAD * 64);
            _tile_stored(0, own, TILE_BYTES);
            _tile_stored(1, own + SQUARE / 4, TILE_BYTES);
            _tile_stored(2, own + SQUARE / 2, TILE_BYTES);
            _tile_stored(3, own + SQUARE / 4 * 3, TILE_BYTES);
        }
    }
    for (int one = 0; one < rows; one++) {
        const int half = one / TILE_ROWS, start = min_int(half * TILE_ROWS, rows - TILE_ROWS);
        for (int v = 0; v < 2; v++) {
            const vi sum = *(const vi *)(sums + (2 * half + v) * (SQUARE / 4) + (one - start) * PANEL);
            put(t, one, v, bf16 ? (vf)sum
                                : __builtin_convertvector(sum - shift[v], vf) *
                                      (t->row_scale[one] * LOAD(t->column_scale + v * PANEL)));
        }
    }
}

/* As `product`, for bf16 and 8 bits. Long rows of bf16 in passes over all panels, so that rows stay in the second cache. */
static void product_in_tiles(const Weights *w, const void *a, ll row, const float *row_scale, int rows, float *out,
                             ll out_row, After after, void *context) {
    const int size = SIZES[w->kind], whole = w->k * size / TILE_BYTES;
    const int squares = rows > TILE_ROWS && rows <= TALLEST && w->count % 2 == 0 && w->k * size % TILE_BYTES == 0;
    const int panels = squares ? 2 : 1, passes = squares && w->kind == BF16 && !after ? (whole + DEEPEST - 1) / DEEPEST : 1;
    const int deep = passes > 1 ? (whole + passes - 1) / passes : w->k;
    if (squares) shape_squares();
    else shape_tiles(min_int(TILE_ROWS, rows), w->k * size % TILE_BYTES);
    for (int first = 0; first == 0 || first < whole; first += deep)
        for (int panel = 0; panel < w->count; panel += panels) {
            Tile t = {.a = a, .row = row, .segments = 1, .k = w->k, .row_scale = row_scale, .out_row = out_row};
            vi shift[2] = {};
            t.apart = (ll)w->k * PANEL * size;
            t.panel = (const char *)w->panels + panel * t.apart;
            t.out = out + place_of(panel, out_row);
            if (w->scales) t.column_scale = w->scales + panel * PANEL;
            for (int part = 0; w->kind == I8 && part < w->k; part += LONG_KC) /* rows were stored + 128 */
                for (int i = 0; i < panels; i++)
                    shift[i] += *(const vi *)(w->sums + ((ll)(part / LONG_KC) * w->count + panel + i) * PANEL) * 128;
            if (squares) {
                t.a = (const char *)a + first * TILE_BYTES;
                t.panel = (const char *)t.panel + (ll)first * TILE_BYTES * PANEL;
                t.k = min_int(deep, whole - first) * TILE_BYTES / size;
                rows_in_squares(w->kind, rows, &t, shift, first > 0);
            } else rows_in_tiles(w->kind, rows, &t, *shift);
            for (int i = 0; after && i < panels; i++) after(context, panel + i);
        }
    _tile_release();
}
#else
#define IN_TILES(kind) 0
#endif

/* out[rows][16 * count] = a[rows][k] times the weights; `after`, where given, is called for each finished panel. Where
 * rows of `out` are `PANELS` wide, panels take the place of those before. */
static void product(const Weights *w, const void *a, ll row, const float *row_scale, int rows, float *out, ll out_row,
                    After after, void *context) {
#ifdef AMX
    if (IN_TILES(w->kind)) {
        product_in_tiles(w, a, row, row_scale, rows, out, out_row, after, context);
        return;
    }
#endif
    const int size = SIZES[w->kind], pass = PASSES[w->kind];
    const ll apart = (ll)w->k * PANEL * size;
    for (int first = 0; first < w->k; first += pass) {
        const int k = min_int(pass, w->k - first), last = first + k == w->k;
        for (int panel = 0; panel < w->count; panel += PANELS) {
            const int panels = min_int(PANELS, w->count - panel);
            float *to = out + place_of(panel, out_row);
            Tile t = {.row = row, .apart = apart, .segments = 1, .k = k, .before_row = out_row, .out_row = out_row};
            t.panel = (const char *)w->panels + panel * apart + (ll)first * PANEL * size;
            if (w->scales) t.column_scale = w->scales + panel * PANEL;
            if (w->sums) t.sums = w->sums + ((ll)(first / pass) * w->count + panel) * PANEL;
            for (int r = 0; r < rows; r += MR) {
                t.a = (const char *)a + (r * row + first) * size;
                t.row_scale = row_scale + r;
                t.out = to + r * out_row;
                t.before = first ? t.out : NULL;
                run_tile(w->kind, panels, min_int(MR, rows - r), &t);
            }
            for (int i = 0; after && last && i < panels; i++) after(context, panel + i);
        }
    }
}

/* ---- A block of the transformer ---- */

typedef struct {
    const float *x;          /* (slots, dim) */
    const float *rope;       /* (slots, head / 2, 2) */
    const float *modulation; /* (4, dim): norm before attention, after it, before feed-forward, after it */
    const float *norm_q, *norm_k; /* (head) */
    float *out;                   /* (rows, dim) */
    Weights qkv, to_out, w13, w2; /* columns of heads padded to 16 each; w1 and w3 in turns of 8 columns */
    float eps, qk_eps, last_eps, hidden_scale;
    int32_t slots, rows, dim, heads, head, threads;
} Block;

typedef struct {
    const Block *b;
    int wide, slots;            /* head and slots rounded up to 16 */
    int kind;                   /* of the attention's operands: F32 or BF16 */
    int rows_at_once, queries;  /* rows of a task */
    int threads;
    char *q, *k, *v;            /* (heads, slots, wide); k as panels of keys; v as panels of columns */
    float *mixed;               /* (rows, heads * wide) */
    char *scratch;
    ll scratch_size;
} Plan;

/* x / rms(x) * scale, dim a multiple of 16. */
INLINE void norm_row(const float *x, const float *scale, float eps, int dim, float *out) {
    vf sum = {};
    for (int i = 0; i < dim; i += W) sum += LOAD(x + i) * LOAD(x + i);
    const float factor = 1.0f / sqrtf(sum_of(sum) / (float)dim + eps);
    for (int i = 0; i < dim; i += W) STORE(out + i, LOAD(x + i) * factor * LOAD(scale + i));
}

INLINE vf rotated(vf pairs, vf turn) {
#if W == 16
    const __m512 v = (__m512)pairs, t = (__m512)turn, swapped = _mm512_permute_ps(v, 0xb1);
    return (vf)_mm512_fmaddsub_ps(v, _mm512_moveldup_ps(t), _mm512_mul_ps(swapped, _mm512_movehdup_ps(t)));
#else
    const __m256 v = (__m256)pairs, t = (__m256)turn, swapped = _mm256_permute_ps(v, 0xb1);
    return (vf)_mm256_fmaddsub_ps(v, _mm256_moveldup_ps(t), _mm256_mul_ps(swapped, _mm256_movehdup_ps(t)));
#endif
}

/* A head's norm and rotation, in place; `times` multiplies the result. */
static void norm_rotate(float *x, const float *weight, const float *rope, int head, float eps, float times) {
    vf sums = {};
    for (int i = 0; i < head; i += W) sums += LOAD(x + i) * LOAD(x + i); /* filled up with zeros to sixteens */
    const float factor = 1.0f / sqrtf(sum_of(sums) / (float)head + eps);
    int i = 0;
    for (; i + W <= head; i += W) { /* pairs of even and odd, as pairs of cosine and sine */
        const vf pairs = LOAD(x + i) * factor * LOAD(weight + i), turn = LOAD(rope + i);
        STORE(x + i, rotated(pairs, turn) * times);
    }
    for (; i < head; i += 2) {
        const float even = x[i] * factor * weight[i], odd = x[i + 1] * factor * weight[i + 1];
        x[i] = (even * rope[i] - odd * rope[i + 1]) * times;
        x[i + 1] = (even * rope[i + 1] + odd * rope[i]) * times;
    }
}

/* A piece of a task's scratch memory. */
static void *cut(char **free, ll bytes) {
    void *piece = *free;
    *free += round_up(bytes, 64);
    return piece;
}

/* What attention reads of head h at slot s, in its own operands: a row of queries, a column of a panel of keys. */
static void put_query(const Plan *p, int h, int s, const float *x) {
    char *to = p->q + ((ll)h * p->slots + s) * p->wide * SIZES[p->kind];
    if (p->kind == BF16) to_bf16(x, p->wide, to);
    else memcpy(to, x, 4 * p->wide);
}

static void put_key(const Plan *p, int h, int s, float *x) {
    typedef uint32_t __attribute__((may_alias)) Four; /* bytes: one value or two */
    const int count = p->wide * SIZES[p->kind] / 4;
    Four *to = (Four *)(p->k + ((ll)h * p->slots + s / PANEL * PANEL) * p->wide * SIZES[p->kind]) + s % PANEL;
    if (p->kind == BF16) to_bf16(x, p->wide, x);
    for (int i = 0; i < count; i++) to[i * PANEL] = ((const Four *)x)[i];
}

/* Rows of all panels of values; in bf16 an even slot and the next, where there is one, lie between each other. */
static void put_values(const Plan *p, int h, int s, const float *x, const float *next) {
    char *to = p->v + ((ll)h * p->slots * p->wide + (ll)s * PANEL) * SIZES[p->kind];
    for (int i = 0; i < p->wide; i += PANEL, to += (ll)p->slots * PANEL * SIZES[p->kind])
        if (p->kind == F32) {
            memcpy(to, x + i, 4 * PANEL);
            if (next) memcpy(to + 4 * PANEL, next + i, 4 * PANEL);
        } else
            for (int v = 0; v < NV; v++) {
                vu pairs = rounded(LOAD(x + i + v * W)) >> 16;
                if (next) pairs |= rounded(LOAD(next + i + v * W)) & 0xffff0000;
                *(vu *)(to + 4 * v * W) = pairs;
            }
}

/* Norm, queries, keys and values of some rows (an even number before them); queries and keys normed and rotated. */
static void project_rows(void *context, int index, int slot) {
    const Plan *p = context;
    const Block *b = p->b;
    const int first = index * p->rows_at_once, rows = min_int(p->rows_at_once, b->slots - first);
    const int columns = 3 * b->heads * p->wide;
    char *room = p->scratch + slot * p->scratch_size;
    float *normed = cut(&room, 4LL * p->rows_at_once * b->dim), *qkv = cut(&room, 4LL * p->rows_at_once * columns);
    float *scales = cut(&room, 4LL * p->rows_at_once);
    for (int r = 0; r < rows; r++)
        norm_row(b->x + (ll)(first + r) * b->dim, b->modulation, b->eps, b->dim, normed + (ll)r * b->dim);
    const void *a = operands(b->qkv.kind, normed, b->dim, rows, b->dim, room, scales);
    product(&b->qkv, a, b->dim, scales, rows, qkv, columns, NULL, NULL);
    const float times = (p->kind == BF16 ? 1.44269504f : 1.0f) / sqrtf((float)b->head);
    for (int r = 0; r < rows; r++) {
        const int s = first + r;
        const float *rope = b->rope + (ll)s * b->head;
        for (int h = 0; h < b->heads; h++) {
            float *query = qkv + (ll)r * columns + h * p->wide, *key = query + b->heads * p->wide;
            const float *value = key + b->heads * p->wide;
            if (s < b->rows) {
                norm_rotate(query, b->norm_q, rope, b->head, b->qk_eps, times);
                put_query(p, h, s, query);
            }
            norm_rotate(key, b->norm_k, rope, b->head, b->qk_eps, 1.0f);
            put_key(p, h, s, key);
            if (r % 2 == 0) put_values(p, h, s, value, r + 1 < rows ? value + columns : NULL);
        }
    }
}

/* out = rows of operands times panels of 16 columns that lie `apart`, of one kind without scales. */
static void attention_product(int kind, const void *a, ll row, int rows, int k, const char *panels, ll apart, int count,
                              float *out, ll out_row) {
    Tile t = {.row = row, .apart = apart, .segments = 1, .before_row = out_row, .out_row = out_row};
#ifdef AMX
    if (IN_TILES(kind)) {
        shape_tiles(min_int(TILE_ROWS, rows), k * SIZES[kind] % TILE_BYTES);
        t.a = a, t.k = k;
        for (int i = 0; i < count; i++) {
            t.panel = panels + i * apart, t.out = out + i * PANEL;
            rows_in_tiles(kind, rows, &t, (vi){});
        }
        _tile_release();
        return;
    }
#endif
    const int pass = 2 * KC / SIZES[kind]; /* 16 KB of a panel */
    for (int first = 0; first < k; first += pass) {
        t.k = min_int(pass, k - first);
        for (int i = 0; i < count; i += PANELS) {
            t.panel = panels + i * apart + (ll)first * PANEL * SIZES[kind];
            for (int r = 0; r < rows; r += MR) {
                t.a = (const char *)a + (r * row + first) * SIZES[kind];
                t.out = out + r * out_row + i * PANEL;
                t.before = first ? t.out : NULL;
                run_tile(kind, min_int(PANELS, count - i), min_int(MR, rows - r), &t);
            }
        }
    }
}

/* softmax(q k) v of some rows of one head: all scores of a row at once. */
static void attend_rows(void *context, int index, int slot) {
    const Plan *p = context;
    const Block *b = p->b;
    const int pieces = (b->rows + p->queries - 1) / p->queries, size = SIZES[p->kind];
    int part = 0; /* a thread's rows, all heads of them, are next to each other */
    while (b->heads * begin_of(part + 1, p->threads, pieces) <= index) part++;
    const int begin = begin_of(part, p->threads, pieces), own = begin_of(part + 1, p->threads, pieces) - begin;
    const int h = (index - b->heads * begin) / own, first = (begin + (index - b->heads * begin) % own) * p->queries;
    const int rows = min_int(p->queries, b->rows - first);
    const ll head = (ll)h * p->slots * p->wide * size, out_row = (ll)b->heads * p->wide;
    float *scores = (float *)(p->scratch + slot * p->scratch_size), *out = p->mixed + first * out_row + h * p->wide;
    float factors[64];
    attention_product(p->kind, p->q + head + (ll)first * p->wide * size, p->wide, rows, b->head, p->k + head,
                      (ll)PANEL * p->wide * size, p->slots / PANEL, scores, p->slots);
    for (int r = 0; r < rows; r++) {
        float *row = scores + (ll)r * p->slots;
        for (int s = b->slots; s < p->slots; s++) row[s] = -INFINITY; /* slots that only fill a panel: values of 0 */
        vf most = LOAD(row), sum = {};
        for (int s = W; s < p->slots; s += W) most = larger(most, LOAD(row + s));
        const float top = max_of(most);
        for (int s = 0; p->kind == F32 && s < p->slots; s += W) {
            vf e = exp_of(LOAD(row + s) - top);
            sum += e;
            STORE(row + s, e);
        }
        for (int s = 0; p->kind == BF16 && s < p->slots; s += W) { /* scores are logarithms to the base of 2 */
            vf e = power_of_2(LOAD(row + s) - top);
            sum += e;
            to_bf16((const float *)&e, W, (char *)row + 2 * s);
        }
        factors[r] = 1.0f / sum_of(sum);
    }
    attention_product(p->kind, scores, (ll)p->slots * 4 / size, rows, p->slots, p->v + head,
                      (ll)p->slots * PANEL * size, p->wide / PANEL, out, out_row);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < p->wide; i += W) STORE(out + r * out_row + i, LOAD(out + r * out_row + i) * factors[r]);
}

typedef struct {
    const float *gates; /* 8 of w1, 8 of w3 in turns */
    float *hidden;
    ll gates_row, hidden_row;
    int rows, rough;
    float scale;
} Silu;

/* A panel's hidden values, or two panels' after the second of them, which lie side by side. */
static void silu_panel(void *context, int panel) {
    const Silu *s = context;
#if W == 16
    if (panel % 2 == 0) return;
    for (int r = 0; r < s->rows; r++) {
        const float *x = s->gates + r * s->gates_row + place_of(panel - 1, s->gates_row);
        const __m512 first = (__m512)LOAD(x), second = (__m512)LOAD(x + PANEL);
        const vf gate = (vf)_mm512_shuffle_f32x4(first, second, 0x44), value = (vf)_mm512_shuffle_f32x4(first, second, 0xee);
        STORE(s->hidden + r * s->hidden_row + (panel - 1) * 8, (s->rough ? rough_silu(gate) : silu(gate)) * (value * s->scale));
    }
#else
    for (int r = 0; r < s->rows; r++) {
        const float *x = s->gates + r * s->gates_row + place_of(panel, s->gates_row);
        const vf gate = LOAD(x), value = LOAD(x + 8);
        STORE(s->hidden + r * s->hidden_row + panel * 8, silu(gate) * (value * s->scale));
    }
#endif
}

/* Gates are needed few panels at a time where a panel is finished in one pass. */
static int gates_width(const Block *b) {
    return (IN_TILES(b->w13.kind) || b->w13.k <= PASSES[b->w13.kind] ? PANELS : b->w13.count) * PANEL;
}

/* All that follows attention, for some rows: out-projection, norm, gate, residual; feed-forward likewise. */
static void finish_rows(void *context, int index, int slot) {
    const Plan *p = context;
    const Block *b = p->b;
    const int first = index * p->rows_at_once, rows = min_int(p->rows_at_once, b->rows - first), dim = b->dim;
    const int gates_row = gates_width(b), hidden_row = b->w2.k;
    const float *gate_1 = b->modulation + dim, *scale_2 = gate_1 + dim, *gate_2 = scale_2 + dim;
    char *room = p->scratch + slot * p->scratch_size;
    float *sums = cut(&room, 4LL * p->rows_at_once * dim), *normed = cut(&room, 4LL * p->rows_at_once * dim);
    float *gates = cut(&room, 4LL * p->rows_at_once * gates_row);
    float *hidden = cut(&room, 4LL * p->rows_at_once * hidden_row), *scales = cut(&room, 4LL * p->rows_at_once);
    const float *x = b->x + (ll)first * dim;
    float *out = b->out + (ll)first * dim;
    const int mixed_row = b->heads * p->wide;
    const void *a = operands(b->to_out.kind, p->mixed + (ll)first * mixed_row, mixed_row, rows, mixed_row, room, scales);
    product(&b->to_out, a, mixed_row, scales, rows, sums, dim, NULL, NULL);
    for (int r = 0; r < rows; r++) {
        float *sum = sums + (ll)r * dim, *to = out + (ll)r * dim;
        norm_row(sum, gate_1, b->eps, dim, sum);
        for (int i = 0; i < dim; i += W) STORE(to + i, LOAD(x + (ll)r * dim + i) + LOAD(sum + i));
        norm_row(to, scale_2, b->eps, dim, normed + (ll)r * dim);
    }
    a = operands(b->w13.kind, normed, dim, rows, dim, room, scales);
    Silu silu = {gates, hidden, gates_row, hidden_row, rows, b->w2.kind == BF16 || b->w2.kind == I8, b->hidden_scale};
    product(&b->w13, a, dim, scales, rows, gates, gates_row, silu_panel, &silu);
    a = operands(b->w2.kind, hidden, hidden_row, rows, hidden_row, room, scales);
    product(&b->w2, a, hidden_row, scales, rows, sums, dim, NULL, NULL);
    for (int r = 0; r < rows; r++) {
        float *sum = sums + (ll)r * dim, *to = out + (ll)r * dim;
        norm_row(sum, gate_2, b->last_eps, dim, sum);
        for (int i = 0; i < dim; i += W) STORE(to + i, LOAD(to + i) + LOAD(sum + i));
    }
}

/* Attention in bf16 for products that lose no less; in fp32 where that would have to be imitated. */
static int attention_kind(int kind) {
#ifdef __AVX512BF16__
    if (kind == I8) return BF16;
#endif
    return kind == BF16 ? BF16 : F32;
}

/* Rows of a task: at most so many, and as many tasks for one thread as for another. */
static int rows_of_task(int rows, int most, int threads, int step) {
    const ll tasks = round_up((rows + most - 1) / most, threads);
    return min_int(most, (int)round_up((rows + tasks - 1) / tasks, step));
}

/* One block; 0, or 1 where there is no memory. `out` may be `x`. Sizes: dim a multiple of 16, head even. */
int zt_block(const Block *b) {
    const int threads = b->threads < 1 ? 1 : min_int(b->threads, MOST_WORKERS + 1), tiles = IN_TILES(b->qkv.kind);
    Plan p = {.b = b, .wide = (int)round_up(b->head, PANEL), .slots = (int)round_up(b->slots, PANEL), .threads = threads};
    const int most_rows = b->dim <= 512 && !tiles ? 24 : b->dim <= 1024 ? 48 : tiles ? 176 : 144; /* 176: see docs/log.md */
    p.rows_at_once = rows_of_task(b->slots, most_rows, threads, tiles ? 16 : MR);
    p.kind = attention_kind(b->qkv.kind);
    p.queries = IN_TILES(p.kind) ? (p.slots <= 2048 ? 48 : 16) : p.slots <= 2048 ? 24 : 12;
    const ll rows = p.rows_at_once, each = (ll)b->heads * p.slots * p.wide, most = max_int(b->dim, b->w2.k);
    ll floats = max_int(b->dim + 3 * b->heads * p.wide, 2 * b->dim + gates_width(b) + b->w2.k) + most + 1;
    p.scratch_size = round_up(max_int(4 * rows * floats, 4LL * p.queries * p.slots), 64) + 1024;
    char *memory = borrow((3 * SIZES[p.kind] + 4) * each + threads * p.scratch_size);
    if (!memory) return 1;
    const ll part = each * SIZES[p.kind];
    p.q = memory, p.k = p.q + part, p.v = p.k + part, p.mixed = (float *)(p.v + part);
    p.scratch = (char *)(p.mixed + each);
    if (p.slots > b->slots) memset(p.k, 0, 2 * part);
    const int tasks = (b->slots + p.rows_at_once - 1) / p.rows_at_once;
    share(threads, tasks, project_rows, &p);
    share(threads, b->heads * ((b->rows + p.queries - 1) / p.queries), attend_rows, &p);
    share(threads, (b->rows + p.rows_at_once - 1) / p.rows_at_once, finish_rows, &p);
    hand_back(memory);
    return 0;
}

/* ---- One evaluation of the network: what lies before, between and after its blocks is here as well, so that no other
 * library's threads wake up in between and stand in the way of the pool's. ---- */

typedef struct {
    const float *patches;           /* (tokens, patch) */
    const float *pad;               /* (dim): fills the picture's slots up */
    const float *caption;           /* (captions, dim) */
    const float *scale;             /* (dim): of the last norm */
    const float *bias, *last_bias;  /* of the first product (dim) and of the last (patch) */
    float *out;                     /* (tokens, patch) */
    Block *blocks;                  /* `refiners` of them see the picture only; x and out are set here */
    Weights first, last;            /* fp32 */
    float eps;
    int32_t tokens, patch, slots, captions, dim, refiners, layers, threads;
} Forward;

typedef struct {
    const Forward *f;
    float *x;
    char *scratch;
    ll scratch_size;
} ForwardPlan;

#define EMBEDDED 24 /* rows of a task */

/* out[rows][columns] = a[rows][k] times fp32 weights, plus bias; `wide` has room for rows of whole panels. */
static void biased(const Weights *w, const float *a, int rows, const float *bias, float *wide, float *out, int columns) {
    const int row = w->count * PANEL;
    product(w, a, w->k, NULL, rows, wide, row, NULL, NULL);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < columns; i++) out[(ll)r * columns + i] = wide[(ll)r * row + i] + bias[i];
}

static void embed_rows(void *context, int index, int slot) {
    const ForwardPlan *p = context;
    const Forward *f = p->f;
    const int first = index * EMBEDDED, rows = min_int(EMBEDDED, f->tokens - first), k = f->first.k;
    char *room = p->scratch + slot * p->scratch_size;
    float *a = cut(&room, 4LL * EMBEDDED * k);
    memset(a, 0, 4LL * rows * k);
    for (int r = 0; r < rows; r++) memcpy(a + (ll)r * k, f->patches + (ll)(first + r) * f->patch, 4 * f->patch);
    biased(&f->first, a, rows, f->bias, (float *)room, p->x + (ll)first * f->dim, f->dim);
}

/* Layer norm without weights, times the scale, and the last product. */
static void unembed_rows(void *context, int index, int slot) {
    const ForwardPlan *p = context;
    const Forward *f = p->f;
    const int first = index * EMBEDDED, rows = min_int(EMBEDDED, f->tokens - first), dim = f->dim;
    char *room = p->scratch + slot * p->scratch_size;
    float *a = cut(&room, 4LL * EMBEDDED * dim);
    for (int r = 0; r < rows; r++) {
        const float *x = p->x + (ll)(first + r) * dim;
        vf sum = {}, squares = {};
        for (int i = 0; i < dim; i += W) sum += LOAD(x + i);
        const float mean = sum_of(sum) / (float)dim;
        for (int i = 0; i < dim; i += W) squares += (LOAD(x + i) - mean) * (LOAD(x + i) - mean);
        const float factor = 1.0f / sqrtf(sum_of(squares) / (float)dim + f->eps);
        for (int i = 0; i < dim; i += W) STORE(a + (ll)r * dim + i, (LOAD(x + i) - mean) * factor * LOAD(f->scale + i));
    }
    biased(&f->last, a, rows, f->last_bias, (float *)room, f->out + (ll)first * f->patch, f->patch);
}

/* All of it; 0, or 1 where there is no memory. */
int zt_forward(const Forward *f) {
    const int threads = f->threads < 1 ? 1 : min_int(f->threads, MOST_WORKERS + 1), all = f->slots + f->captions;
    const int widest = max_int(max_int(f->dim, f->first.k), f->last.count * PANEL);
    ForwardPlan p = {.f = f, .scratch_size = round_up(8LL * EMBEDDED * widest, 64) + 64};
    const ll size = round_up(4LL * all * f->dim, 64);
    char *memory = borrow(size + threads * p.scratch_size);
    if (!memory) return 1;
    p.x = (float *)memory, p.scratch = memory + size;
    const int tasks = (f->tokens + EMBEDDED - 1) / EMBEDDED;
    share(threads, tasks, embed_rows, &p);
    for (int s = f->tokens; s < f->slots; s++) memcpy(p.x + (ll)s * f->dim, f->pad, 4LL * f->dim);
    memcpy(p.x + (ll)f->slots * f->dim, f->caption, 4LL * f->captions * f->dim);
    int failed = 0;
    for (int i = 0; i < f->refiners + f->layers && !failed; i++) {
        Block *b = f->blocks + i;
        b->x = b->out = p.x, b->slots = b->rows = i < f->refiners ? f->slots : all;
        if (i == f->refiners + f->layers - 1) b->rows = f->tokens; /* nobody reads the other rows */
        failed = zt_block(b);
    }
    if (!failed) share(threads, tasks, unembed_rows, &p);
    hand_back(memory);
    return failed;
}

/* ---- A small language model that writes: some tokens more of a few texts, with the keys and values of those before ---- */

typedef struct {
    const float *norm_1, *norm_q, *norm_k, *norm_2;
    Weights qkv, to_out, gates, down; /* gates first, then values */
} TextLayer;

typedef struct {
    const TextLayer *layers;
    const float *cosines, *sines; /* (length, head), the first half of the sines negated */
    const float *last_norm;
    float *x;                     /* (texts, count, hidden): the tokens' embeddings, overwritten */
    float *states;                /* (depth, 2, texts, kv_heads, length, head): keys and values */
    float *logits;                /* (texts, 16 * panels of words): of the token that follows */
    Weights words;
    float eps;
    int32_t depth, texts, count, before, length, hidden, heads, kv_heads, head, inner;
} Text;

/* A head's norm and rotation of its halves, in place. */
static void norm_rotate_halves(float *x, const float *weight, const float *cosines, const float *sines, int head,
                               float eps, float *room) {
    norm_row(x, weight, eps, head, room);
    const int half = head / 2;
    for (int i = 0; i < head; i++) x[i] = room[i] * cosines[i] + room[i < half ? i + half : i - half] * sines[i];
}

/* Causal attention of one head of one token over the keys up to its place. */
static void attend_token(const float *query, const float *keys, const float *values, int seen, int head, float *scores,
                         float *out) {
    const float scale = 1.0f / sqrtf((float)head);
    float top = -INFINITY, total = 0.0f;
    for (int s = 0; s < seen; s++) {
        vf sum = {};
        for (int i = 0; i < head; i += W) sum += LOAD(query + i) * LOAD(keys + (ll)s * head + i);
        scores[s] = sum_of(sum) * scale;
        top = scores[s] > top ? scores[s] : top;
    }
    for (int s = 0; s < seen; s++) total += scores[s] = expf(scores[s] - top);
    for (int i = 0; i < head; i += W) {
        vf sum = {};
        for (int s = 0; s < seen; s++) sum += scores[s] * LOAD(values + (ll)s * head + i);
        STORE(out + i, sum * (1.0f / total));
    }
}

/* Rows times weights, rows of `k` values next to each other. */
static void multiply(const Weights *w, const float *rows, int count, float *out, char *room, float *scales) {
    const void *a = operands(w->kind, rows, w->k, count, w->k, room, scales);
    product(w, a, w->k, scales, count, out, (ll)w->count * PANEL, NULL, NULL);
}

static void attend_tokens(const Text *t, int layer, float *qkv, float *mixed, float *scores) {
    const TextLayer *l = t->layers + layer;
    const int head = t->head, all = t->heads + 2 * t->kv_heads, shared = t->heads / t->kv_heads;
    const ll kept = (ll)t->length * head, side = t->texts * t->kv_heads * kept; /* of a head, of all keys */
    float *keys = t->states + 2 * layer * side, *values = keys + side;
    for (int r = 0; r < t->texts * t->count; r++) {
        const int text = r / t->count, place = t->before + r % t->count;
        float *own = qkv + (ll)r * all * head;
        const float *cosines = t->cosines + (ll)place * head, *sines = t->sines + (ll)place * head;
        for (int h = 0; h < t->heads + t->kv_heads; h++)
            norm_rotate_halves(own + h * head, h < t->heads ? l->norm_q : l->norm_k, cosines, sines, head, t->eps, scores);
        for (int h = 0; h < t->kv_heads; h++) {
            const ll to = (text * t->kv_heads + h) * kept + (ll)place * head;
            memcpy(keys + to, own + (t->heads + h) * head, 4 * head);
            memcpy(values + to, own + (t->heads + t->kv_heads + h) * head, 4 * head);
        }
        for (int h = 0; h < t->heads; h++) {
            const ll from = (text * t->kv_heads + h / shared) * kept;
            attend_token(own + h * head, keys + from, values + from, place + 1, head, scores,
                         mixed + ((ll)r * t->heads + h) * head);
        }
    }
}

/* Read `count` tokens of each text; 0, or 1 where there is no memory. Widths are multiples of 16. */
int zt_text(const Text *t) {
    const int rows = t->texts * t->count, hidden = t->hidden, all = (t->heads + 2 * t->kv_heads) * t->head;
    const int widest = max_int(max_int(hidden, t->heads * t->head), t->inner), wide = max_int(all, 2 * t->inner);
    const ll floats = (ll)rows * (2LL * widest + wide + hidden + 1) + max_int(t->length, t->head);
    char *memory = borrow(4 * floats + 6 * 64);
    if (!memory) return 1;
    char *room = memory;
    float *narrow = cut(&room, 4LL * rows * widest), *broad = cut(&room, 4LL * rows * wide);
    float *sums = cut(&room, 4LL * rows * hidden), *scales = cut(&room, 4LL * rows);
    float *scores = cut(&room, 4LL * max_int(t->length, t->head));
    for (int layer = 0; layer < t->depth; layer++) {
        const TextLayer *l = t->layers + layer;
        for (int r = 0; r < rows; r++) norm_row(t->x + (ll)r * hidden, l->norm_1, t->eps, hidden, narrow + (ll)r * hidden);
        multiply(&l->qkv, narrow, rows, broad, room, scales);
        attend_tokens(t, layer, broad, narrow, scores);
        multiply(&l->to_out, narrow, rows, sums, room, scales);
        for (int r = 0; r < rows; r++) {
            float *x = t->x + (ll)r * hidden;
            for (int i = 0; i < hidden; i += W) STORE(x + i, LOAD(x + i) + LOAD(sums + (ll)r * hidden + i));
            norm_row(x, l->norm_2, t->eps, hidden, narrow + (ll)r * hidden);
        }
        multiply(&l->gates, narrow, rows, broad, room, scales);
        for (int r = 0; r < rows; r++) {
            const float *gate = broad + 2LL * r * t->inner;
            float *to = narrow + (ll)r * t->inner;
            for (int i = 0; i < t->inner; i += W) STORE(to + i, silu(LOAD(gate + i)) * LOAD(gate + t->inner + i));
        }
        multiply(&l->down, narrow, rows, sums, room, scales);
        for (ll i = 0; i < (ll)rows * hidden; i += W) STORE(t->x + i, LOAD(t->x + i) + LOAD(sums + i));
    }
    for (int text = 0; text < t->texts; text++) {
        const float *last = t->x + ((ll)(text + 1) * t->count - 1) * hidden;
        norm_row(last, t->last_norm, t->eps, hidden, narrow + (ll)text * hidden);
    }
    multiply(&t->words, narrow, t->texts, t->logits, room, scales);
    hand_back(memory);
    return 0;
}

/* ---- The decoder: 3x3 convolutions over pixels that lie as (height, width, channels), channels in sixteens ---- */

typedef struct {
    const float *x;               /* (height, width, in) */
    const float *factor, *offset; /* (in): silu(x * factor + offset) is what is convolved; NULL: x itself */
    const float *before;          /* (height, width, out) to be added, or NULL; may be `out` */
    const float *source;          /* (height, width, source_channels) to be added after a 1x1 convolution, or NULL */
    const float *bias, *source_bias;
    float *out;  /* (height, width, out); doubled: twice the height and width */
    float *sums; /* (pieces, 2, out): sums of the result and of its squares, or NULL; see zt_conv_pieces */
    Weights weights, shortcut; /* k: rows of pixels, pixels, channels. Doubled: four times, for each place in a pixel */
    const int32_t *totals;     /* I8: sums of a column's weights */
    int32_t height, width, in, out_channels, source_channels;
    int32_t doubled; /* the result has each pixel of x twice in both directions before the convolution */
    int32_t group;   /* pixels of a row of the product: 1, or 4 of 3 channels each, which fill a panel better */
    int32_t threads;
} Conv;

typedef struct {
    const Conv *c;
    int rows, columns, down, across; /* of a piece; pieces */
    char *scratch;
    ll scratch_size;
} ConvPlan;

#define WIDEST 128 /* pixels of a piece's row */

/* Pieces depend on the shape alone: sums over them must not depend on the threads. */
static void plan_pieces(const Conv *c, ConvPlan *p) {
    p->columns = min_int(c->width, c->in <= 32 ? WIDEST : c->in <= 64 ? 64 : 32);
    p->across = (c->width + p->columns - 1) / p->columns;
    p->down = (c->height + (c->in <= 16 ? 15 : 7)) / (c->in <= 16 ? 16 : 8);
    p->rows = (c->height + p->down - 1) / p->down;
    p->down = (c->height + p->rows - 1) / p->rows;
}

/* The pixels that a piece reads, one more on each side, zeros beyond the picture: as fp32, or as bf16 at once. */
INLINE void fill(const int bf16, const int rough, const Conv *c, int top, int left, int rows, int columns, char *to,
                 Largest *l) {
    const int in = c->in, size = bf16 ? 2 : 4;
    Largest seen = *l; /* in registers: what is written to `to` could be `l` */
    for (int y = top - 1; y <= top + rows; y++)
        for (int x = left - 1; x <= left + columns; x++, to += in * size) {
            if (y < 0 || y >= c->height || x < 0 || x >= c->width) {
                memset(to, 0, in * size);
                continue;
            }
            const float *from = c->x + ((ll)y * c->width + x) * in;
            for (int i = 0; i < in; i += W) {
                __builtin_prefetch(from + (ll)c->width * in + i); /* the next row: its beginning is seldom foreseen */
                vf v = LOAD(from + i);
                if (c->factor) {
                    v = v * LOAD(c->factor + i) + LOAD(c->offset + i);
                    v = rough ? rough_silu(v) : silu(v);
                }
                if (bf16) to_bf16((const float *)&v, W, to + 2 * i);
                else {
                    look_at(&seen, v);
                    STORE((float *)to + i, v);
                }
            }
        }
    *l = seen;
}

static void convolve_piece(void *context, int index, int slot) {
    const ConvPlan *p = context;
    const Conv *c = p->c;
    const Weights *w = &c->weights;
    const int top = index / p->across * p->rows, left = index % p->across * p->columns;
    const int rows = min_int(p->rows, c->height - top), columns = min_int(p->columns, c->width - left);
    const int in = c->in, out = c->out_channels, size = SIZES[w->kind], places = c->doubled ? 4 : 1;
    const int in_tiles = IN_TILES(w->kind) && c->group == 1 && out % PANEL == 0;
    const int narrow = out % PANEL; /* a panel is wider than the result's rows: through a copy */
    const ll stride = (ll)(columns + 2) * in, count = (rows + 2) * stride, wide = (ll)c->width << c->doubled;
    char *room = p->scratch + slot * p->scratch_size;
    char *pixels = cut(&room, 4 * count);
    float *few = cut(&room, 4 * TALL * PANEL), scale = 0.0f, scales[WIDEST];
    Largest l = {};
    if (w->kind == BF16) fill(1, 1, c, top, left, rows, columns, pixels, &l);
    else if (w->kind == I8) fill(0, 1, c, top, left, rows, columns, pixels, &l);
    else fill(0, 0, c, top, left, rows, columns, pixels, &l);
    const char *a = pixels;
    if (w->kind == I8 || w->kind == I16) { /* one scale for the piece */
        scale = to_integers(w->kind, (const float *)pixels, count, &l, room);
        a = room;
    }
    for (int r = 0; r < WIDEST; r++) scales[r] = scale;

    const int segments = c->doubled ? 2 : 3, k = (c->doubled ? 2 : c->group + 2) * in; /* k of a row of pixels */
    const int whole = segments * k <= (w->kind == F32 ? 640 : PASSES[w->kind]);        /* in one pass over the panel */
    for (int place = 0; place < places; place++) {
        const int py = place >> 1, px = place & 1;
        for (int panel = 0; panel < w->count; panel++) {
            const int column = (place * w->count + panel) * PANEL;
            float *result = c->out + ((ll)(top << c->doubled) + py) * wide * out + ((ll)(left << c->doubled) + px) * out
                          + panel * PANEL;
            const ll out_row = (ll)out << c->doubled, down = (wide * out) << c->doubled;
            if (c->source) {
                Tile t = {.row = c->source_channels, .segments = 1, .k = c->source_channels, .out_row = out,
                          .panel = (const float *)c->shortcut.panels + (ll)panel * c->source_channels * PANEL,
                          .bias = c->source_bias + panel * PANEL};
                for (int y = 0; y < rows; y++)
                    for (int x = 0; x < columns; x += TALL) {
                        t.a = c->source + ((ll)(top + y) * c->width + left + x) * c->source_channels;
                        t.out = result + y * down + x * out_row;
                        run_tile(F32, 1, min_int(TALL, columns - x), &t);
                    }
            }
            Tile t = {.row = (ll)c->group * in, .stride = stride, .segments = whole ? segments : 1, .row_scale = scales,
                      .out_row = narrow ? PANEL : out_row, .column_scale = w->scales ? w->scales + column : NULL};
#ifdef AMX
            if (in_tiles) {
                shape_tiles(min_int(TILE_ROWS, columns), k * size % TILE_BYTES);
                t.segments = segments, t.k = k, t.bias = c->bias + panel * PANEL, t.before_row = out_row;
                t.panel = (const char *)w->panels + (ll)column * w->k * size;
                for (int y = 0; y < rows; y++) {
                    t.a = a + ((y + py) * stride + px * in) * size;
                    t.out = result + y * down;
                    t.before = c->before ? c->before + (t.out - c->out) : c->source ? t.out : NULL;
                    rows_in_tiles(w->kind, columns, &t, c->totals ? *(const vi *)(c->totals + column) * 128 : (vi){});
                }
                _tile_release();
            }
#endif
            for (int s = 0; s < segments && !in_tiles; s += t.segments)
                for (int first = 0; first < k; first += t.k) {
                    const int begin = !s && !first, end = s + t.segments == segments;
                    t.k = whole ? k : min_int(KC, k - first);
                    t.panel = (const char *)w->panels + ((ll)column * w->k + (s * (ll)k + first) * PANEL) * size;
                    t.bias = end && first + t.k == k ? c->bias + panel * PANEL : NULL;
                    t.sums = begin && c->totals ? c->totals + column : NULL;
                    for (int y = 0; y < rows; y++)
                        for (int x = 0; x < columns; x += TALL * c->group) {
                            const int high = min_int(TALL, (columns - x) / c->group);
                            t.a = a + ((y + py + s) * stride + (x + px) * in + first) * size;
                            float *to = result + y * down + x * out_row;
                            t.out = narrow ? few : to;
                            for (int r = 0; narrow && !begin && r < high; r++)
                                memcpy(few + r * PANEL, to + r * c->group * out_row, 4 * c->group * out);
                            t.before = begin ? NULL : t.out, t.before_row = t.out_row;
                            if (begin && c->source) t.before = t.out;
                            if (begin && c->before) t.before = c->before + (t.out - c->out);
                            run_tile(w->kind, 1, high, &t);
                            for (int r = 0; narrow && r < high; r++)
                                memcpy(to + r * c->group * out_row, few + r * PANEL, 4 * c->group * out);
                        }
                }
            if (!c->sums) continue;
            float *sums = c->sums + (ll)index * 2 * out + panel * PANEL;
            if (!place) memset(sums, 0, 4 * PANEL), memset(sums + out, 0, 4 * PANEL);
            for (int y = 0; y < rows; y++) {
                vf of_row[NV] = {}, squares[NV] = {};
                for (int x = 0; x < columns; x++)
                    for (int v = 0; v < NV; v++) {
                        vf value = LOAD(result + y * down + x * out_row + v * W);
                        of_row[v] += value, squares[v] += value * value;
                    }
                for (int v = 0; v < NV; v++) {
                    STORE(sums + v * W, LOAD(sums + v * W) + of_row[v]);
                    STORE(sums + out + v * W, LOAD(sums + out + v * W) + squares[v]);
                }
            }
        }
    }
}

/* How many pieces a convolution of this shape has. */
int zt_conv_pieces(const Conv *c) {
    ConvPlan p;
    plan_pieces(c, &p);
    return p.down * p.across;
}

/* One convolution; 0, or 1 where there is no memory. */
int zt_conv(const Conv *c) {
    ConvPlan p = {.c = c};
    plan_pieces(c, &p);
    p.scratch_size = 8LL * (p.rows + 2) * (p.columns + 2) * c->in + 4 * TALL * PANEL + 1024;
    p.scratch_size = round_up(p.scratch_size, 64);
    const int threads = c->threads < 1 ? 1 : min_int(c->threads, MOST_WORKERS + 1);
    p.scratch = borrow(threads * p.scratch_size);
    if (!p.scratch) return 1;
    share(threads, p.down * p.across, convolve_piece, &p);
    hand_back(p.scratch);
    return 0;
}

/* Group norm as a factor and an offset per channel, from (pieces, 2, channels) sums over so many pixels. */
void zt_norm(const float *sums, int pieces, int channels, int groups, ll pixels, const float *weight, const float *bias,
             float eps, float *factor, float *offset) {
    const int size = channels / groups;
    for (int g = 0; g < groups; g++) {
        double sum = 0, squares = 0;
        for (int piece = 0; piece < pieces; piece++)
            for (int i = g * size; i < (g + 1) * size; i++) {
                sum += sums[(ll)piece * 2 * channels + i];
                squares += sums[(ll)piece * 2 * channels + channels + i];
            }
        const double mean = sum / ((double)pixels * size), variance = squares / ((double)pixels * size) - mean * mean;
        const double over = 1.0 / sqrt((variance > 0 ? variance : 0) + eps);
        for (int i = g * size; i < (g + 1) * size; i++) {
            factor[i] = (float)(over * weight[i]);
            offset[i] = (float)(bias[i] - mean * over * weight[i]);
        }
    }
}
