package programs

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/weft-mesh/weft/deploy/images"
)

// testImage is a container image with one program in it.
type testImage struct {
	file string // bin/images/FILE.tar
	ref  string
	pkg  string // the Go package that is compiled; empty: it is made elsewhere
	at   string // the program's path in the image
}

var testImages = []testImage{
	{"pause", "registry.k8s.io/pause:3.10", "./e2e/kubernetes/pause", "/pause"},
	{"coredns", "registry.k8s.io/coredns/coredns:v1.14.0", "", "/coredns"},
	{"envoy", "docker.io/envoyproxy/envoy:distroless-v1.40.0", "", "/usr/local/bin/envoy"},
	{"testapp", "docker.io/weftmesh/testapp:1", "./e2e/testapp", "/usr/local/bin/testapp"},
	{"testapp-dev", "docker.io/weftmesh/testapp:dev", "./e2e/testapp", "/usr/local/bin/testapp"},
	{"bookinfo-productpage", "docker.io/weftmesh/bookinfo-productpage:1", "./samples/bookinfo/productpage", "/usr/local/bin/productpage"},
	{"bookinfo-details", "docker.io/weftmesh/bookinfo-details:1", "./samples/bookinfo/details", "/usr/local/bin/details"},
	{"bookinfo-reviews", "docker.io/weftmesh/bookinfo-reviews:1", "./samples/bookinfo/reviews", "/usr/local/bin/reviews"},
	{"bookinfo-ratings", "docker.io/weftmesh/bookinfo-ratings:1", "./samples/bookinfo/ratings", "/usr/local/bin/ratings"},
}

// TestImages makes the archives of what runs beside the mesh in tests: pause, Envoy, the test program and the samples. It
// returns their paths.
func (b *Builder) TestImages(ctx context.Context) ([]string, error) {
	unlock, err := b.lock(ctx, "images/programs")
	if err != nil {
		return nil, err
	}
	defer unlock()
	began := time.Now()
	if err := b.envoy(ctx); err != nil {
		return nil, err
	}
	coreDNS, err := b.coreDNS(ctx)
	if err != nil {
		return nil, err
	}
	build := []string{"build", "-trimpath", "-ldflags=-s -w", "-o", b.path("bin", "images", "programs") + "/"}
	seen := map[string]bool{}
	for _, i := range testImages {
		if i.pkg != "" && !seen[i.pkg] {
			seen[i.pkg] = true
			build = append(build, i.pkg)
		}
	}
	if err := b.run(ctx, b.root, nil, "go", build...); err != nil {
		return nil, err
	}
	var archives []string
	made := 0
	for _, i := range testImages {
		archive := b.path("bin", "images", i.file+".tar")
		archives = append(archives, archive)
		program := b.path("bin", "images", "programs", filepath.Base(i.pkg))
		switch i.file {
		case "coredns":
			program = coreDNS
		case "envoy":
			program = b.path("bin", "envoy")
		}
		if newer(archive, program) {
			continue
		}
		files, err := images.Libraries(program)
		if err != nil {
			return nil, err
		}
		err = images.WriteArchive(archive, images.Spec{
			Ref: i.ref, Platform: v1.Platform{OS: "linux", Architecture: runtime.GOARCH},
			Files:      append(files, images.File{Path: i.at, From: program, Mode: 0o755}),
			Entrypoint: []string{i.at}, Env: []string{"PATH=/usr/local/bin:/bin"},
		})
		if err != nil {
			return nil, err
		}
		made++
	}
	if made > 0 {
		b.say(began, "%d test images", made)
	}
	return archives, nil
}

// newer says whether a is there and not older than b.
func newer(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && !x.ModTime().Before(y.ModTime())
}
