package programs

import (
	"context"
	"path/filepath"
	"runtime"
	"time"
)

// Path is a path below the checkout.
func (b *Builder) Path(elem ...string) string { return b.path(elem...) }

// Program is where a program of the mesh is.
func (b *Builder) Program(name string) string { return b.path("bin", name) }

// Images makes all images that the tests need, that of the mesh among them, and the command line tool that installs it. It
// returns the paths of their archives.
func (b *Builder) Images(ctx context.Context) ([]string, error) {
	archives, err := b.TestImages(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := b.run(ctx, b.root, nil, "make", "bin/weft"); err != nil {
		return nil, err
	}
	if err := b.run(ctx, b.root, nil, "go", "run", "./deploy/images/build", "--host-only"); err != nil {
		return nil, err
	}
	b.say(began, "bin/weft, bin/images/weft.tar")
	return append(archives, b.path("bin", "images", "weft.tar")), nil
}

// NextVersion is what [Builder.NextMesh] calls itself.
const NextVersion = "1.0.1-next"

// NextMesh makes the mesh of the same sources in another version, for tests of upgrades: its command line tool, and the archive of its image.
func (b *Builder) NextMesh(ctx context.Context) (weft, archive string, err error) {
	began := time.Now()
	dir := b.path("bin", "images", "next")
	if err := b.run(ctx, b.root, nil, "go", "run", "./deploy/images/build", "--host-only", "--version", NextVersion, "--out", dir); err != nil {
		return "", "", err
	}
	b.say(began, "bin/images/next: weft and its image in version %s", NextVersion)
	return filepath.Join(dir, "linux-"+runtime.GOARCH, "weft"), filepath.Join(dir, "weft.tar"), nil
}
