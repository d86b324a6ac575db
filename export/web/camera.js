/** The camera: asked for only when its button is pressed. */

/** Why there is no picture of the camera, in words. */
const REASONS = {
  NotAllowedError:
    "The camera was not allowed. Allow it for this page in the browser's " +
    "settings, or choose a picture.",
  NotFoundError: "No camera was found. Choose a picture instead.",
  NotReadableError:
    "The camera is in use by another program. Close that, or choose a " +
    "picture.",
};

/**
 * Show what the camera sees.
 *
 * @param {HTMLVideoElement} video
 * @throws {Error} With a message for the user, if there is no picture.
 */
export async function openCamera(video) {
  if (!navigator.mediaDevices) {
    throw new Error("Browsers open the camera only on https and localhost.");
  }
  try {
    const stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment" },
    });
    closeCamera(video); // that of a second press
    video.srcObject = stream;
    await video.play();
  } catch (error) {
    closeCamera(video);
    throw new Error(
      REASONS[error.name] ?? `The camera does not open: ${error.message}.`,
    );
  }
}

/** Turn the camera off, if it is on. */
export function closeCamera(video) {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}

/**
 * What the camera sees now, as a PNG file, which loses nothing.
 *
 * @param {HTMLVideoElement} video
 * @returns {Promise<Blob>}
 */
export async function takePicture(video) {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
