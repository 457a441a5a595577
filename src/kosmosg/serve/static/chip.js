// One picture inside the line, as an element.

/** Return the element of a picture, made anew or brought up to date. */
export function chipOf(picture, element = made()) {
  const image = element.querySelector("img");
  if (image.src !== picture.url) image.src = picture.url;
  const weight = element.querySelector(".weight");
  weight.textContent = `×${picture.weight}`;
  weight.hidden = picture.weight === 1;
  element.classList.toggle("absent", picture.weight === 0);
  return element;
}

/** Return what a screen reader says of a picture. */
export function named(picture, number, count) {
  const weight = picture.weight === 1 ? "" : `, weight ${picture.weight}`;
  return `Picture ${number + 1} of ${count}: ${picture.name}${weight}`;
}

function made() {
  const element = document.createElement("span");
  element.className = "chip";
  element.contentEditable = "false";
  element.draggable = true;
  element.tabIndex = -1; // the arrow keys come here, as they come to a character
  element.setAttribute("role", "button");
  element.setAttribute("aria-haspopup", "dialog");
  const image = document.createElement("img");
  image.alt = "";
  image.draggable = false;
  const weight = document.createElement("span");
  weight.className = "weight";
  weight.setAttribute("aria-hidden", "true");
  element.append(image, weight);
  return element;
}
