"""Names on the system bus."""

MEDIA = "org.magbay.Media1"
MEDIA_ROOT = "/org/magbay/Media1"
MAGAZINE = "org.magbay.Magazine1"
CHANGER = "org.magbay.Changer1"
CHANGER_ROOT = "/org/magbay/Changer1"
