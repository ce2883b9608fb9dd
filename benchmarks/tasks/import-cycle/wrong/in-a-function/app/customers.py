class Customer:
    def __init__(self, name):
        self.name = name
        self.orders = []

    def order(self, total):
        from app.orders import Order

        self.orders.append(Order(self, total))
        return self.orders[-1]
