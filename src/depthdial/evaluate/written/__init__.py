"""What a model writes at a budget, judged by its untouched base: is it as likely, does it loop, does it end?"""
