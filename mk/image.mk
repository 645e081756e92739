# The package, the image and the machines it runs in; see docs/image.md and docs/vm-testing.md.
.PHONY: host-packages deb deb-check image image-path run

host-packages:
	@image/install-host-packages

## make deb       the Debian package
deb: | host-packages
	@image/build --deb

## make deb-check install the package on a plain Debian 13 tree, and remove it again
deb-check: | host-packages
	@image/deb-check

## make image     the bootable image (from the cache when nothing changed)
image: | host-packages
	@image/build

image-path:
	@image/build --path

## make run       the image on a serial console in QEMU
run: image
	@image/run
