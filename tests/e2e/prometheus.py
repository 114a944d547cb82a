"""A real Prometheus on a free port, with the rules of deploy/monitoring made impatient, and what its dashboards ask."""

import json
import math
import pathlib
import re
import shutil
import urllib.parse
import urllib.request

import yaml
from cluster import Process
from harness import ROOT, eventually, free_port

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
MONITORING = ROOT / "deploy" / "monitoring"
# What a rule waits for, and the window that it looks back over.
FOR, WINDOW = "1s", "8s"


def impatient(rules):
    """The rules with every `for` and every window of up to hours cut to seconds; what they compare stays."""
    rules = re.sub(r"\bfor: \d+[mh]", f"for: {FOR}", rules)
    return re.sub(r"\[\d+[mh]\]", f"[{WINDOW}]", rules)


class Prometheus(Process):
    """Scrapes the given targets every second. `targets`: job of prometheus.yml -> addresses."""

    def __init__(self, root, targets):
        root.mkdir(parents=True, exist_ok=True)
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        jobs = {job["job_name"]: job for job in config["scrape_configs"]}
        assert targets.keys() <= jobs.keys(), "the test scrapes a job that the configuration does not have"
        config["scrape_configs"] = [
            {**jobs[name], "scrape_interval": "1s", "scrape_timeout": "1s", "static_configs": [{"targets": addresses}]}
            for name, addresses in targets.items()]
        (root / "prometheus.yml").write_text(yaml.safe_dump(config))
        (root / "rules.yml").write_text(impatient((MONITORING / "rules.yml").read_text()))
        self.address = f"127.0.0.1:{free_port()}"
        super().__init__(root / "prometheus.log", [
            PROMETHEUS, f"--config.file={root / 'prometheus.yml'}", f"--storage.tsdb.path={root / 'data'}",
            f"--web.listen-address={self.address}", "--log.level=warn"])

    def start(self):
        super().start()
        eventually("Prometheus is ready", 20, lambda: self.get("/-/ready", plain=True))
        return self

    def get(self, path, plain=False, **query):
        text = urllib.parse.urlencode(query)
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}?{text}", timeout=10) as answer:
                return True if plain else json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            assert plain, (path, query, error.read().decode())
        except OSError:
            assert plain, (path, query)
        return False

    def query(self, expression):
        """Labels and value of every series that is a number."""
        found = self.get("/api/v1/query", query=expression)
        series = found["result"] if found["resultType"] == "vector" else [{"metric": {}, "value": found["result"]}]
        values = [(entry["metric"], float(entry["value"][1])) for entry in series]
        return [(labels, value) for labels, value in values if not math.isnan(value)]

    def firing(self):
        return {alert["labels"]["alertname"] for alert in self.get("/api/v1/alerts")["alerts"] if alert["state"] == "firing"}

    def wait_for(self, *alerts, seconds=30):
        eventually(f"{alerts} fire (of {alerts}, these do: {self.firing()})", seconds, lambda: set(alerts) <= self.firing())

    def wait_clear(self, *alerts, seconds=30):
        eventually(f"{alerts} clear", seconds, lambda: not set(alerts) & self.firing())


def dashboards():
    return {path.stem: json.loads(path.read_text()) for path in sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))}


def panel_queries():
    """(dashboard/panel, PromQL) of every query of every panel, with the variables filled in as Grafana does."""
    fill = {"$__rate_interval": WINDOW, "$node": ".*", "$operation": ".*"}
    for name, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                query = target["expr"]
                for variable, value in fill.items():
                    query = query.replace(variable, value)
                assert "$" not in query, f"a variable that no dashboard has: {query}"
                yield f"{name}/{panel['title']}", query


def documented(title):
    """Names in a chapter of docs/metrics.md."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    chapter = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([a-z0-9_]+)` \|", chapter, re.M))


def exported(address):
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return set(re.findall(r"^# TYPE (\S+) ", answer.read().decode(), re.M))


SCHEMA = pathlib.Path(__file__).with_name("dashboard.schema.json")
