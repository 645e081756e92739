"""A FIDO2 security token in software, for the guest: CTAP 2.0 over HID, with the hmac-secret extension and a PIN.

There it is `python3 -m authenticator`, and needs python3-cryptography and the kernel's uhid. Written from the "Client
to Authenticator Protocol" of the FIDO Alliance (2.0, proposed standard of January 30, 2019).
"""
