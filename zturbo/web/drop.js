// A picture that was made here brings its settings back: dropped, pasted or opened.

import { $, toast } from "./dom.js";
import { t } from "./language.js";
import { readSettings } from "./picture-file.js";

/** `onSettings` gets what the file says about itself. */
export function wireDrop(onSettings) {
  const take = async (file) => {
    if (!file) return;
    const settings = await readSettings(file).catch(() => null);
    if (settings === null) toast(t("open.none"));
    else onSettings(settings, file.name);
  };
  let depth = 0; // of the elements that the pointer has entered and not left
  const hasFile = (event) => event.dataTransfer?.types.includes("Files");
  const show = (by) => { depth = Math.max(0, depth + by); $("drop").hidden = depth === 0; };
  addEventListener("dragenter", (event) => hasFile(event) && show(1));
  addEventListener("dragleave", (event) => hasFile(event) && show(-1));
  addEventListener("dragover", (event) => hasFile(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    show(-depth);
    take(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => take(event.clipboardData?.files[0]));
  $("open-picture").onchange = () => { take($("open-picture").files[0]); $("open-picture").value = ""; };
}
