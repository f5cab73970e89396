// What this browser remembers between visits. Storage may be forbidden or full: then nothing is remembered, and the
// page works all the same.

export function recall(name) {
  try {
    return JSON.parse(localStorage.getItem(`zturbo.${name}`));
  } catch {
    return null;
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(`zturbo.${name}`, JSON.stringify(value));
  } catch { /* as said above */ }
}
