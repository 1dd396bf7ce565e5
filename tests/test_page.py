"""The pages in a real browser, which reaches nothing but the server."""

import base64
import shutil

import pytest
from helpers import COLOURS, save_image
from served import colour_model, served

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DROPPED = """content => {
    const files = new DataTransfer();
    const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
    files.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
    files.items.add(new File(["no image"], "<b>bad</b>.txt"));
    files.items.add(new File([new Uint8Array(200001)], "large.png"));
    return files;
}"""


@pytest.fixture
def page():
    """A page of a headless browser, which must have had no messages and no requests to elsewhere in the end."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, messages, requests = browser.new_page(), [], []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        yield page
        assert not messages
        assert requests and not [url for url in requests if "//127.0.0.1:" not in url]
        browser.close()


def test_choosing_dropping_and_keyboard(page, tmp_path):
    model = colour_model(tmp_path / "model.onnx", threshold=0.9)
    red = save_image(tmp_path / "red.png", COLOURS["red"])
    mud = save_image(tmp_path / "mud.tiff", (120, 40, 115))
    with served(tmp_path, model, "--max_upload", "200kB") as server:
        page.goto(server.url)
        page.locator("#model", has_text="model.onnx: 3 classes, fp32, onnxruntime").wait_for()

        page.keyboard.press("Tab")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Space")
        chooser.value.set_files([red, mud])
        page.locator("h2", has_text="red").wait_for()
        page.locator("h2.unsure", has_text="unsure").wait_for()
        assert page.locator("article img").count() == 1  # browsers do not show TIFF
        assert page.locator(".blank", has_text="no preview").count() == 1
        first = page.locator("article").last
        assert first.locator(".file").inner_text() == "red.png"
        assert first.locator(".class").all_inner_texts()[0] == "red"
        bars = [float(bar.get_attribute("value")) for bar in first.locator("meter").all()]
        assert len(bars) == 3 and bars == sorted(bars, reverse=True) and bars[0] > 0.9

        with page.expect_file_chooser() as chooser:
            page.locator("#drop").click()
        chooser.value.set_files([red])
        page.locator("article").nth(2).locator("meter").nth(2).wait_for()

        content = base64.b64encode(red.read_bytes()).decode()
        page.dispatch_event("#drop", "drop", {"dataTransfer": page.evaluate_handle(DROPPED, content)})
        page.locator("h2.error", has_text="the file is larger than 0.2 MB").wait_for()
        page.locator("h2.error", has_text="not an image in a format that is read here").wait_for()
        files = page.locator("article .file").all_inner_texts()
        assert files[:3] == ["large.png", "<b>bad</b>.txt", "dropped.png"]

        page.locator("a", has_text="For programs").click()
        page.locator("h2", has_text="POST /predict").wait_for()
        assert "integer from 1 to 3, by default 3" in page.locator("main").inner_text()
        assert "no answer" not in page.locator("main").inner_text()
