from app.customers import Customer


class Order:
    def __init__(self, customer, total):
        self.customer = customer
        self.total = total


def describe(who):
    if isinstance(who, Customer):
        return f"{who.name}: {sum(order.total for order in who.orders)}"
    return f"{who.customer.name}: {who.total}"
