// Runs before the first paint: appearance and language as they were chosen, so that nothing flashes.
// Storage may be forbidden by the browser; then the system's choice stands.
(() => {
  const root = document.documentElement;
  let theme = null;
  let language = null;
  try {
    theme = JSON.parse(localStorage.getItem("zturbo.theme"));
    language = JSON.parse(localStorage.getItem("zturbo.language"));
  } catch { /* as said above */ }
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  if (language !== "en" && language !== "zh") language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
  root.lang = language === "zh" ? "zh-Hans" : "en";
})();
