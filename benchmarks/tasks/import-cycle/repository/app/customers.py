from app.orders import Order


class Customer:
    def __init__(self, name):
        self.name = name
        self.orders = []

    def order(self, total):
        self.orders.append(Order(self, total))
        return self.orders[-1]
