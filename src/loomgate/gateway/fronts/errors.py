"""temporary"""
def error_body(provider, status, content_type, body): return {"error": {"message": provider + " error: " + body.decode("utf8","replace"), "type": None, "param": None, "code": None}, "provider": provider}
