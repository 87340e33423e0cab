// Command build makes the image of the mesh: all its programs, from scratch, for every platform.
//
//	go run ./deploy/images/build [--version 1.2.3] [--host-only] [--push REGISTRY/NAME:TAG]
//
// It compiles the programs itself, by the same flags everywhere, and writes bin/images/weft.tar (docker-archive of this machine's
// platform, for "kind load image-archive" and "ctr images import") and bin/images/weft-oci.tar (OCI layout of all platforms). The same sources
// give the same bytes.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/weft-mesh/weft/deploy/images"
	"github.com/weft-mesh/weft/deploy/release"
)

// programs are in the image at /NAME.
var programs = []string{"weft", "weftd", "weft-node", "weft-cni"}

// nobody is the user unless a pod says otherwise, as that of the node agent does. Distroless images have the same.
const nobody = "65532:65532"

type options struct {
	version   string
	platforms string
	out       string
	hostOnly  bool
	push      string
}

func main() {
	var o options
	flag.StringVar(&o.version, "version", "dev", "release to stamp into the programs and the tag")
	flag.StringVar(&o.platforms, "platforms", "linux/amd64,linux/arm64", "platforms of the OCI layout and of what is pushed")
	flag.StringVar(&o.out, "out", "bin/images", "directory to write to")
	flag.BoolVar(&o.hostOnly, "host-only", false, "only weft.tar, for this machine's platform: what a test on this machine needs")
	flag.StringVar(&o.push, "push", "", "also push to this reference, with the credentials of ~/.docker/config.json")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := o.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "images: "+err.Error())
		os.Exit(1)
	}
}

func (o options) run(ctx context.Context) error {
	if o.hostOnly && o.push != "" {
		return fmt.Errorf("--host-only and --push exclude each other: what is pushed is for all platforms")
	}
	unlock, err := lock(o.out)
	if err != nil {
		return err
	}
	defer unlock()
	host := v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	spec, err := o.image(ctx, host)
	if err != nil {
		return err
	}
	archive := filepath.Join(o.out, "weft.tar")
	began := time.Now()
	if err := images.WriteArchive(archive, spec); err != nil {
		return err
	}
	say(archive, spec.Ref, began)
	if o.hostOnly {
		return nil
	}
	var specs []images.Spec
	for text := range strings.SplitSeq(o.platforms, ",") {
		p, err := v1.ParsePlatform(strings.TrimSpace(text))
		if err != nil {
			return fmt.Errorf("--platforms: %w", err)
		}
		s, err := o.image(ctx, *p)
		if err != nil {
			return err
		}
		s.Compress = true
		specs = append(specs, s)
	}
	began = time.Now()
	index, err := images.Index(specs)
	if err != nil {
		return err
	}
	layout := filepath.Join(o.out, "weft-oci.tar")
	if err := images.WriteLayout(layout, spec.Ref, index); err != nil {
		return err
	}
	say(layout, spec.Ref, began)
	if o.push == "" {
		return nil
	}
	digest, err := images.Push(ctx, o.push, index)
	if err == nil {
		fmt.Printf("%s@%s\n", o.push, digest)
	}
	return err
}

// lock waits for another build that writes to the same directory.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

func say(file, ref string, began time.Time) {
	if info, err := os.Stat(file); err == nil {
		fmt.Printf("%-26s %s, %.1f MB, %.1f s\n", file, ref, float64(info.Size())/1e6, time.Since(began).Seconds())
	}
}

// image compiles the programs for a platform, into a directory that is kept: the next build only does what has changed.
func (o options) image(ctx context.Context, p v1.Platform) (images.Spec, error) {
	if p.OS != "linux" {
		return images.Spec{}, fmt.Errorf("platform %s: the programs are for linux", p)
	}
	dir := filepath.Join(o.out, p.OS+"-"+p.Architecture)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return images.Spec{}, err
	}
	// No build path, no commit and no build ID in the programs: only what the sources say.
	args := []string{"build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -buildid= -X github.com/weft-mesh/weft/deploy/release.stamped=" + o.version, "-o", dir + string(filepath.Separator)}
	began := time.Now()
	spec := images.Spec{
		Ref:        release.Hub + "/" + release.ImageName + ":" + o.version,
		Platform:   p,
		Entrypoint: []string{"/weft"},
		User:       nobody,
		Labels: map[string]string{
			"org.opencontainers.image.title":       release.ImageName,
			"org.opencontainers.image.description": "weft, a service mesh with Istio's API and stock Envoy sidecars: all its programs",
			"org.opencontainers.image.version":     o.version,
			"org.opencontainers.image.source":      "https://github.com/weft-mesh/weft",
			"org.opencontainers.image.licenses":    "Apache-2.0",
		},
	}
	for _, name := range programs {
		args = append(args, "./cmd/"+name)
		spec.Files = append(spec.Files, images.File{Path: "/" + name, From: filepath.Join(dir, name), Mode: 0o755})
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+p.OS, "GOARCH="+p.Architecture)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return images.Spec{}, fmt.Errorf("go build for %s: %w", p, err)
	}
	fmt.Printf("%-26s %s, %.1f s\n", dir, strings.Join(programs, " "), time.Since(began).Seconds())
	return spec, nil
}
