// What the page does in the browser by itself, once it is laid out.
() => {
  // Gradio names each radio button differently, and a browser's arrow keys move within one name.
  document.querySelectorAll("#tedm-examples input").forEach((input) => { input.name = "example"; });

  // A file that would be refused is not sent: it could take long, and Gradio does not grasp the refusal.
  const tooLarge = (files) => [...(files ?? [])].some((file) => file.size > MAX_BYTES);
  const refuse = (event) => {
    event.preventDefault();
    event.stopImmediatePropagation();
    document.querySelector("#tedm-too-large").click();
  };
  window.addEventListener("change", (event) => {
    if (event.target.type !== "file" || !tooLarge(event.target.files)) return;
    refuse(event);
    event.target.value = ""; // so that the same file can be chosen again
  }, true);
  window.addEventListener("drop", (event) => {
    if (!tooLarge(event.dataTransfer?.files)) return;
    refuse(event);
    // One without files, by which Gradio sees that nobody holds one over it any more.
    event.target.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true }));
  }, true);
}
