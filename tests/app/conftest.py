"""A server in a thread, and a browser with a real mouse."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import contextmanager

import pytest
from tornado.ioloop import IOLoop

from dspa.app.serve import make_server

TOKEN = "secret-of-the-test"
SIZE = {"width": 1400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
# The view of a model, found by its name; `what` is then evaluated.
VIEW = """
const [name, argument] = arguments
const model = Bokeh.documents[0].get_model_by_name(name)
const view = Bokeh.index.find_one(model)
return (() => { WHAT })()
"""


@contextmanager
def running(project):
    """Serve a project in a thread; give its address."""
    ready, box = threading.Event(), {}

    def work():
        loop = IOLoop(make_current=True)
        box["server"], box["address"] = make_server(project, token=TOKEN)
        box["loop"] = loop
        box["server"].start()
        loop.add_callback(ready.set)
        loop.start()
        box["server"].stop()
        loop.close(all_fds=True)

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(20)
    try:
        yield box["address"]
    finally:
        box["loop"].add_callback(box["loop"].stop)
        thread.join(20)


@pytest.fixture(scope="session")
def serve():
    """``with serve(project) as address``."""
    return running


class Screen:
    """A page as a user meets it: looked at, dragged and clicked."""

    def __init__(self, driver):
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.actions.action_builder import ActionBuilder

        self.driver, self._actions, self._chain = driver, ActionBuilder, ActionChains

    def open(self, address):
        self.driver.get(address)
        self.until(lambda: self.driver.execute_script("return !!window.Bokeh?.documents?.length"))

    def of(self, name, what, argument=None):
        """Evaluate ``what`` (JavaScript) with ``model`` and ``view`` of a named model."""
        return self.driver.execute_script(VIEW.replace("WHAT", what), name, argument)

    def value(self, name, attribute="value"):
        return self.of(name, "return model[argument]", attribute)

    def until(self, true, seconds=20.0):
        """Wait until a function gives something true, and return that."""
        end = time.monotonic() + seconds
        while True:
            found = true()
            if found:
                return found
            assert time.monotonic() < end, f"not within {seconds} s"
            time.sleep(0.03)

    def middle(self, name, selector=""):
        """Where on the page the middle of a widget is, or of parts of it."""
        parts = "[view.el]" if not selector else "[...view.shadow_el.querySelectorAll(argument)]"
        found = self.of(
            name,
            f"return {parts}.map(e => e.getBoundingClientRect())"
            ".map(r => [r.x + r.width / 2, r.y + r.height / 2])",
            selector,
        )
        return found if selector else found[0]

    def settle(self, name, selector=""):
        """Wait until a widget stays where it is."""

        def still():
            before = self.middle(name, selector)
            time.sleep(0.1)
            return before == self.middle(name, selector)

        self.until(still)

    def place(self, name, x, y):
        """Where on the page a point of a plot is."""
        return self.of(
            name,
            "const r = view.canvas_view.el.getBoundingClientRect()\n"
            "return [r.x + view.frame.x_scale.compute(argument[0]),"
            " r.y + view.frame.y_scale.compute(argument[1])]",
            [float(x), float(y)],
        )

    def mouse(self, *places, press=True, release=True):
        """Go to a place, press, go by the others, release: with the mouse of the browser."""
        builder = self._actions(self.driver, duration=40)
        pointer = builder.pointer_action
        pointer.move_to_location(*(round(n) for n in places[0]))
        if press:
            pointer.pointer_down()
        for place in places[1:]:
            pointer.move_to_location(*(round(n) for n in place))
        if release:
            pointer.pointer_up()
        builder.perform()

    def hold(self, key):
        """Press a key and keep it down."""
        self._chain(self.driver).key_down(key).perform()

    def let_go(self, key):
        self._chain(self.driver).key_up(key).perform()

    def click(self, name, selector=""):
        at = self.middle(name, selector)
        self.mouse(at[0] if selector else at)

    def keys(self, *keys, held=""):
        if held:
            self.hold(held)
        self._chain(self.driver).send_keys(*keys).perform()
        if held:
            self.let_go(held)


@pytest.fixture(scope="session")
def screen():
    """A headless Chromium; the tests that need it are skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    binary = next((path for name in names if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium and chromedriver on this machine")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS:
        options.add_argument(flag)
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    try:
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", SIZE)
        yield Screen(chrome)
    finally:
        chrome.quit()
