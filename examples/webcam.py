"""Label what a camera or a video file shows, on each frame; q ends it.

    pip install opencv-python
    python examples/webcam.py            # the first camera
    python examples/webcam.py film.mp4   # or a file
    python examples/webcam.py 0 MODEL    # with a model of your own, such as runs/first

Hold one item before a plain, light background: the model knows nothing else.
"""

import sys

import fmcae

try:
    import cv2
except ImportError:
    sys.exit("this example needs OpenCV: run  pip install opencv-python")


def main(source: str = "0", name: str = "fashion-mnist") -> None:
    """Read frames until the source ends or q is pressed."""
    model = fmcae.load(name)
    camera = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    if not camera.isOpened():
        sys.exit(f"{source}: no camera or video that OpenCV can open")
    while True:
        is_read, frame = camera.read()  # (H, W, 3) uint8, blue first
        if not is_read:
            break
        prediction = model.predict(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        text = f"{prediction.label} {prediction.probability:.2f}" if prediction.known else "unknown"
        cv2.putText(frame, text, (10, 30), cv2.FONT_HERSHEY_SIMPLEX, 1, (0, 94, 213), 2)
        cv2.imshow("fmcae", frame)
        if cv2.waitKey(1) == ord("q"):
            break
    camera.release()
    cv2.destroyAllWindows()


if __name__ == "__main__":
    main(*sys.argv[1:3])
