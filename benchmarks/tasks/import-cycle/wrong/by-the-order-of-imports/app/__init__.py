from app.orders import Order, describe
from app.customers import Customer
