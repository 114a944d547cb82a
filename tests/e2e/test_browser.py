"""Pages in headless Chromium: what it shows after it has loaded, run and fetched everything itself.

Chromium resolves every name below `localhost` to this machine, so a website has a host of its own without a name server.
"""

import html
import json
import re
import struct
import zlib

import pytest
from botocore.exceptions import ClientError
from clients import environment, needs, run
from harness import BINARIES, MIB, run_quarryd

pytestmark = needs("chromium")
WEBSITE_DOMAIN = "web.localhost"


@pytest.fixture
def show(scratch):
    """`show(url)`: the text of the page's element `result`, once its scripts are done."""
    def call(url):
        page = dom(url)
        found = re.search(r'id="result"[^>]*>(.*?)</', page, re.S)
        assert found, f"{url} shows no result:\n{page[:2000]}"
        return html.unescape(found[1])

    def browse(url, *flags):
        # No sandbox of its own: tests also run as root in containers. The profile is the test's own.
        return run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--no-proxy-server", f"--user-data-dir={scratch / 'profile'}",
             "--virtual-time-budget=20000", *flags, "--dump-dom", url], environment(scratch), timeout=120)

    def dom(url):
        return browse(url).stdout

    call.browse, call.dom = browse, dom
    return call


def image(width, height):
    """A PNG of one colour."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\x20\x80\xc0" * width) * height
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def needs_websites():
    """Forms and websites came together, and with them this flag."""
    if "--website-domain" not in run_quarryd("--help").stdout:
        pytest.skip("this quarryd takes no forms and hosts no websites yet")


def link(client, bucket, key):
    return client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=600)


def put_page(client, bucket, key, body):
    client.put_object(Bucket=bucket, Key=key, Body=body.encode(), ContentType="text/html; charset=utf-8")


def test_a_page_by_presigned_url(make_node, show):
    """Text in UTF-8, a style sheet, an image, a script, and byte ranges fetched by it, each by its own URL."""
    node = make_node(device_size="256MiB")
    client = node.client()
    client.create_bucket(Bucket="site")
    big = bytes(range(256)) * (3 * MIB // 256)
    for key, body, kind in (
        ("a picture+ü.png", image(31, 17), "image/png"), ("style.css", b"#styled { width: 123px }", "text/css"),
        ("script.js", b"window.loaded = 'script ran'", "text/javascript"), ("big.bin", big, "application/octet-stream"),
    ):
        client.put_object(Bucket="site", Key=key, Body=body, ContentType=kind)
    put_page(client, "site", "index ü.html", f"""<!doctype html><title>page</title>
        <link rel=stylesheet href="{html.escape(link(client, 'site', 'style.css'))}">
        <img id=picture src="{html.escape(link(client, 'site', 'a picture+ü.png'))}">
        <script src="{html.escape(link(client, 'site', 'script.js'))}"></script>
        <div id=styled>Grüße, 日本</div><p id=result>nothing</p>
        <script>window.onload = async () => {{
            const range = await fetch({json.dumps(link(client, 'site', 'big.bin'))}, {{headers: {{Range: 'bytes=1000000-1000009'}}}})
            const bytes = new Uint8Array(await range.arrayBuffer())
            document.getElementById('result').textContent = [
                picture.naturalWidth + 'x' + picture.naturalHeight, styled.offsetWidth, window.loaded, range.status,
                Array.from(bytes).join('.'), range.headers.get('content-range'), styled.textContent].join('|')
        }}</script>""")
    found = show(link(client, "site", "index ü.html")).split("|")
    assert found == [
        "31x17", "123", "script ran", "206", ".".join(str(byte) for byte in big[1_000_000:1_000_010]),
        f"bytes 1000000-1000009/{len(big)}", "Grüße, 日本"]
    # What is refused is shown as an error, not as a page.
    assert "AccessDenied" in show.dom(f"{node.endpoint}/site/script.js")


def test_a_form_uploads_a_file(make_node, show):
    """A form that a browser fills, encodes and sends itself, with a policy; the answer is a redirect that it follows."""
    needs_websites()
    node = make_node(device_size="256MiB")
    client = node.client()
    client.create_bucket(Bucket="forms")
    put_page(client, "forms", "thanks.html", "<p id=thanks>thank you</p>")
    # A redirect gets the place of the upload as its query, so its target cannot be presigned.
    everyone = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::forms/thanks.html"}
    client.put_bucket_policy(Bucket="forms", Policy=json.dumps({"Version": "2012-10-17", "Statement": [everyone]}))
    thanks = f"{node.endpoint}/forms/thanks.html"

    def page(name, policy):
        fields = "".join(f'<input type=hidden name="{key}" value="{html.escape(value)}">' for key, value in policy["fields"].items())
        put_page(client, "forms", name, f"""<!doctype html><p id=result>nothing</p><iframe name=answer id=frame></iframe>
            <form id=form method=post enctype="multipart/form-data" target=answer action="{policy['url']}">{fields}
            <input type=file name=file id=file></form>
            <script>window.onload = () => {{
                const files = new DataTransfer()
                files.items.add(new File(['bytes of a browser: ü'], 'ein Föto.txt', {{type: 'text/plain'}}))
                file.files = files.files
                const frame = document.getElementById('frame')
                frame.onload = () => {{
                    document.getElementById('result').textContent = frame.contentDocument.documentElement.textContent.trim()
                }}
                form.submit()
            }}</script>""")
        return show(link(client, "forms", name))

    allowed = client.generate_presigned_post(
        "forms", "uploads/${filename}", Fields={"success_action_redirect": thanks, "x-amz-meta-by": "browser"},
        Conditions=[{"success_action_redirect": thanks}, {"x-amz-meta-by": "browser"}, ["content-length-range", 1, 1000]],
        ExpiresIn=600)
    shown = page("form.html", allowed)
    assert shown == "thank you"
    found = client.get_object(Bucket="forms", Key="uploads/ein Föto.txt")
    assert found["Body"].read().decode() == "bytes of a browser: ü" and found["Metadata"] == {"by": "browser"}

    too_small = client.generate_presigned_post(
        "forms", "refused", Conditions=[["content-length-range", 1, 5]], ExpiresIn=600)
    assert "EntityTooLarge" in page("too-large.html", too_small)
    forged = {**allowed, "fields": {**allowed["fields"], "x-amz-meta-by": "somebody else"}}
    assert "AccessDenied" in page("forged.html", forged)
    assert client.list_objects_v2(Bucket="forms", Prefix="refused")["KeyCount"] == 0


def test_a_website(make_node, show):
    """Index documents, relative links, an error page and a redirect, without credentials."""
    needs_websites()
    node = make_node("--website-domain", WEBSITE_DOMAIN, device_size="256MiB")
    client = node.client()
    client.create_bucket(Bucket="site")
    try:
        client.put_bucket_website(Bucket="site", WebsiteConfiguration={
            "IndexDocument": {"Suffix": "index.html"}, "ErrorDocument": {"Key": "error.html"},
            "RoutingRules": [{"Condition": {"KeyPrefixEquals": "old/"}, "Redirect": {"ReplaceKeyPrefixWith": "new/"}}]})
        client.delete_public_access_block(Bucket="site")
        client.put_bucket_policy(Bucket="site", Policy=json.dumps({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::site/*"}]}))
    except ClientError as error:
        if error.response["Error"]["Code"] == "NotImplemented":
            pytest.skip(f"no public websites yet: {error}")
        raise
    client.put_object(Bucket="site", Key="new/script.js", ContentType="text/javascript",
                      Body=b"document.getElementById('result').textContent = 'script of ' + location.pathname")
    put_page(client, "site", "index.html", "<p id=result>home</p>")
    put_page(client, "site", "new/index.html", "<p id=result>no script</p><script src=script.js></script>")
    put_page(client, "site", "error.html", "<p id=result>our own error page</p>")
    home = f"http://site.{WEBSITE_DOMAIN}:{node.listen}"
    assert show(f"{home}/") == "home"
    assert show(f"{home}/new/") == "script of /new/"
    # Without its slash the browser is sent to the folder, so that relative links work.
    assert show(f"{home}/new") == "script of /new/"
    assert show(f"{home}/old/") == "script of /new/"
    assert show(f"{home}/no/such/page") == "our own error page"


LOOK_AT_PLOTS = """<script>window.onload = () => {
    const inside = (part, whole) => part.left >= whole.left - 1 && part.right <= whole.right + 1
        && part.top >= whole.top - 1 && part.bottom <= whole.bottom + 1
    const plots = Array.from(document.querySelectorAll('svg'))
    const cut = plots.flatMap(plot => Array.from(plot.querySelectorAll('text'))
        .filter(text => !inside(text.getBoundingClientRect(), plot.getBoundingClientRect())).map(text => text.textContent))
    const lines = plots.map(plot => Array.from(plot.querySelectorAll('polyline')).map(line => Math.round(line.getTotalLength())))
    const bars = plots.map(plot => Array.from(plot.querySelectorAll('rect')).filter(bar => bar.getBBox().height > 1).length)
    const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth
    const found = {plots: plots.length, cut, lines, bars, wide, colour: getComputedStyle(document.querySelector('.curve')).stroke}
    const result = document.createElement('p')
    result.id = 'result'
    result.textContent = JSON.stringify(found)
    document.body.append(result)
}</script></body>"""


def test_the_report_of_a_load_run(make_node, show, scratch):
    """Every plot is drawn and its text is within it; nothing is wider than the window; the console has nothing to say."""
    node = make_node(device_size="256MiB")
    access, secret = node.credentials()
    report = scratch / "report.html"
    run([BINARIES / "quarry-loadgen", "run", "--endpoint", node.endpoint, "--access-key", access, "--secret-key", secret,
         "--bucket", "bench", "--mix", "put=40,get=50,list=5,delete=5", "--size", "histogram:2KiB=60,100KiB=40", "--objects", "30",
         "--rate", "50", "--phases", "prepare,steady:4s", "--html", report, "--quiet", "--keep-going"], environment(scratch))
    watched = scratch / "watched.html"
    watched.write_text(report.read_text().replace("</body>", LOOK_AT_PLOTS))
    for width in (1000, 500):
        done = show.browse(f"file://{watched}", f"--window-size={width},900", "--enable-logging=stderr")
        assert "CONSOLE" not in done.stderr, done.stderr
        found = json.loads(html.unescape(re.search(r'id="result">(.*?)</p>', done.stdout, re.S)[1]))
        # Latency, two of throughput, latency by second with three curves, and sizes as bars.
        assert found["plots"] == 5 and [len(lines) for lines in found["lines"]] == [1, 1, 1, 3, 0], found
        assert all(length > 100 for lines in found["lines"] for length in lines), found
        assert found["bars"][4] == 2 and found["colour"].startswith("rgb("), found
        assert found["cut"] == [] and not found["wide"], found
