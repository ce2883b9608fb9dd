from app.customers import Customer
from app.orders import Order, describe
