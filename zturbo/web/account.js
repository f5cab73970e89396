// Whose requests these are: the key, its balance, and its last seven days.

import { ApiError, authority, getJson, key } from "./api.js";
import { $, h, paragraph, svg, toast } from "./dom.js";
import { inLanguage, number, t } from "./language.js";

const DAY_MS = 86_400_000;
const SENDABLE = /^[\x21-\x7e]+$/; // in a header; a copied text may hide what nobody sees
const CHART = { width: 420, height: 120, foot: 18, head: 16, gap: 10 };

export function wireAccount() {
  $("open-account").onclick = showAccount;
  $("key-form").onsubmit = useKey;
  $("forget-key").onclick = forgetKey;
  inLanguage(refreshBalance);
}

export async function showAccount() {
  const kind = await authority();
  $("account-balance").textContent = "";
  $("account-now").replaceChildren(paragraph(t(`account.now.${kind ?? "none"}`, { prefix: key.get()?.slice(0, 8) })));
  $("forget-key").hidden = kind !== "key";
  $("keep-key").checked = key.isKept();
  $("key-error").hidden = true;
  if (!$("account").open) $("account").showModal();
  await Promise.all([refreshBalance(), showUsage()]);
}

let checking = false; // a key, that the server has not said anything of yet

async function useKey(event) {
  event.preventDefault();
  if (checking) return;
  checking = true;
  try {
    await takeKey();
  } finally {
    checking = false;
  }
}

/** Take a key if the server takes it. */
async function takeKey() {
  const text = $("key").value.trim();
  if (!SENDABLE.test(text)) {
    refuseKey(t("key.odd"));
    return;
  }
  const before = [key.get(), key.isKept()];
  key.set(text, $("keep-key").checked);
  let outcome = "key.taken";
  try {
    await getJson("/v1/billing/balance");
  } catch (error) {
    if (error instanceof ApiError && [401, 400].includes(error.status)) {
      if (before[0]) key.set(...before);
      else key.forget();
      refuseKey(error.message, "en");
      return;
    }
    outcome = "key.unsure"; // any other answer says nothing against the key, nor for it
  }
  $("key").value = "";
  toast(t(outcome));
  showAccount();
}

function refuseKey(reason, lang = document.documentElement.lang) {
  $("key-error").textContent = reason;
  $("key-error").lang = lang;
  $("key-error").hidden = false;
}

function forgetKey() {
  key.forget();
  toast(t("key.forgotten"));
  showAccount();
}

/** The button in the bar: the balance, or who asks. */
export async function refreshBalance() {
  const kind = await authority();
  const name = { key: `${key.get()?.slice(0, 8)}…`, session: t("account.local") }[kind] ?? t("account.open");
  const balance = kind && await getJson("/v1/billing/balance").catch(() => null);
  const limited = balance?.unlimited === false; // the published `balance` is a number even where nothing is limited
  $("account-label").textContent = limited ? t("account.credits", { n: number(balance.balance) }) : name;
  $("open-account").classList.toggle("wanted", kind === null);
  if (balance && $("account").open) {
    const usd = limited && number(balance.balance / 2_000_000, { style: "currency", currency: "USD" });
    $("account-balance").textContent = limited ? t("account.balance", { n: number(balance.balance), usd }) : t("account.unlimited");
  }
}

async function showUsage() {
  try {
    const { groups } = await getJson("/v2/usage?period=7d&group_by=day");
    const days = lastDays(groups);
    $("usage-chart").replaceChildren(...(days.some((day) => day.images) ? [chart(days), table(days)] : [h("p", { className: "quiet" }, t("usage.none"))]));
  } catch (error) {
    $("usage-chart").replaceChildren(usageMissing(error));
  }
}

/** Why there is none: in the page's words where it has some, else in the server's. */
function usageMissing(error) {
  const own = { 401: "usage.denied", 403: "usage.denied", 404: "usage.absent" }[error.status] ?? (error instanceof ApiError ? null : "failed.offline");
  return h("p", { className: "quiet", ...(own ? {} : { lang: "en" }) }, own ? t(own) : error.message);
}

/** Seven days, oldest first; days without a row are empty. */
function lastDays(rows) {
  const known = new Map(rows.map((row) => [row.day, row]));
  return Array.from({ length: 7 }, (_, i) => {
    const day = new Date(Date.now() - (6 - i) * DAY_MS).toISOString().slice(0, 10); // the server counts days in UTC
    const row = known.get(day);
    return { day, images: row?.images ?? 0, credits: row?.credits ?? 0 };
  });
}

const weekday = (day) => new Intl.DateTimeFormat(document.documentElement.lang, { weekday: "short", timeZone: "UTC" }).format(new Date(day));

/** Bars of pictures a day. Screen readers have the table beside it. */
function chart(days) {
  const { width, height, foot, head, gap } = CHART;
  const most = Math.max(...days.map((day) => day.images));
  const step = (width + gap) / days.length;
  const bars = days.flatMap(({ day, images }, i) => {
    const tall = Math.max(images / most * (height - foot - head), images ? 3 : 1);
    const middle = i * step + (step - gap) / 2;
    return [
      svg("rect", { x: i * step, y: height - foot - tall, width: step - gap, height: tall, rx: 3, class: images ? "day" : "day none" }),
      svg("text", { x: middle, y: height - 4, class: "quiet" }, weekday(day)),
      ...(images ? [svg("text", { x: middle, y: height - foot - tall - 5 }, number(images))] : []),
    ];
  });
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", "aria-hidden": "true" }, ...bars);
}

function table(days) {
  const head = h("tr", {}, ...["day", "images", "credits"].map((name) => h("th", { scope: "col" }, t(`usage.${name}`))));
  const rows = days.map(({ day, images, credits }) => h("tr", {}, h("th", { scope: "row" }, day), h("td", {}, number(images)), h("td", {}, number(credits))));
  return h("table", { className: "unseen" }, h("tbody", {}, head, ...rows));
}
