"""What people use today, each written as a user would write it."""
