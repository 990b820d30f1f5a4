// What the page can do without, and is nicer with: pictures that are dropped, and a player that jumps in place.
"use strict";

for (const area of document.querySelectorAll(".drop")) {
  const field = area.querySelector("input[type=file]");
  for (const name of ["dragenter", "dragover"]) {
    area.addEventListener(name, (event) => {
      event.preventDefault();
      area.classList.add("over");
    });
  }
  area.addEventListener("dragleave", () => area.classList.remove("over"));
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    area.classList.remove("over");
    if (event.dataTransfer.files.length) {
      field.files = event.dataTransfer.files;
      field.form.requestSubmit();
    }
  });
  field.addEventListener("change", () => field.form.requestSubmit());
}

const player = document.getElementById("player");
if (player) {
  const jump = (seconds) => {
    player.currentTime = seconds;
  };
  player.addEventListener("loadedmetadata", () => jump(Number(player.dataset.at)), { once: true });
  for (const link of document.querySelectorAll("a[data-at]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      jump(Number(link.dataset.at));
      player.play().catch(() => {});
      player.scrollIntoView({ block: "nearest" });
    });
  }
}
