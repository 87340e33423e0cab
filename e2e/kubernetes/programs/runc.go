package programs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// runcVersion is one that knows user namespaces of pods (from 1.2 on); Debian 12 has 1.1.
const runcVersion = "v1.5.2"

// runc makes runc. Half of it is C, which enters namespaces before Go's threads are there, and libseccomp is a C library: where it cannot be
// compiled, it is Debian's runc, and pods with users of their own (hostUsers: false) do not start on the node.
func (b *Builder) runc(ctx context.Context, dir string) error {
	err := b.compileRunc(ctx, dir)
	if err == nil || ctx.Err() != nil {
		return err
	}
	fmt.Fprintf(b.out, "          runc is this distribution's, so scenarios of pods with hostUsers: false are skipped: %v\n", err)
	return b.debian(ctx, dir, "runc")
}

func (b *Builder) compileRunc(ctx context.Context, dir string) error {
	compiler, err := exec.LookPath("cc")
	if err != nil {
		return err
	}
	work := filepath.Join(dir, ".libseccomp")
	if err := errors.Join(os.RemoveAll(work), os.MkdirAll(work, 0o755)); err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := b.unpack(ctx, work, "libseccomp-dev"); err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(work, "root/usr/lib/*/libseccomp.a"))
	if err != nil {
		return err
	}
	if len(archives) != 1 {
		return fmt.Errorf("package libseccomp-dev has %d libraries libseccomp.a, want one", len(archives))
	}
	// The sources ask pkg-config, which may not be on this machine. Where the library is, go must hear from the environment: that belongs to what it
	// remembers a compilation by, and pkg-config's answer does not.
	ask := filepath.Join(work, "pkg-config")
	if err := os.WriteFile(ask, []byte("#!/bin/sh\ncase $* in *--libs*) echo -lseccomp;; esac\n"), 0o755); err != nil {
		return err
	}
	return b.compile(ctx, module{path: "github.com/opencontainers/runc", version: runcVersion, packages: []string{"."},
		flags: []string{"-tags=seccomp netgo osusergo", "-ldflags=-s -w -extldflags -static -X main.version=" + strings.TrimPrefix(runcVersion, "v")},
		env: []string{"CGO_ENABLED=1", "CC=" + compiler, "PKG_CONFIG=" + ask,
			"CGO_CFLAGS=-O2 -I" + filepath.Join(work, "root/usr/include"), "CGO_LDFLAGS=-L" + filepath.Dir(archives[0])}}, dir)
}
