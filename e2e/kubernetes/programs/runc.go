package programs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// runcVersion is one that knows user namespaces of pods (from 1.2 on); Debian 12 has 1.1.
const runcVersion = "v1.5.2"

// runc makes runc. Half of it is C, which enters namespaces before Go's threads are there, and libseccomp is a C library: where there is no C
// compiler, it is Debian's runc, and pods with users of their own (hostUsers: false) do not start on the node.
func (b *Builder) runc(ctx context.Context, dir string) error {
	compiler, err := exec.LookPath("cc")
	if err != nil {
		fmt.Fprintln(b.out, "          no C compiler: runc is this distribution's, and scenarios of pods with hostUsers: false are skipped")
		return b.debian(ctx, dir, "runc")
	}
	work, err := os.MkdirTemp(dir, ".libseccomp-")
	if err != nil {
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
	// The sources ask pkg-config where libseccomp is. It may not be on this machine, and libseccomp is nowhere that it knows.
	where := filepath.Join(work, "pkg-config")
	answer := fmt.Sprintf("#!/bin/sh\ncase $* in *--cflags*) echo -I%s;; *) echo -L%s -lseccomp;; esac\n", filepath.Join(work, "root/usr/include"), filepath.Dir(archives[0]))
	if err := os.WriteFile(where, []byte(answer), 0o755); err != nil {
		return err
	}
	return b.compile(ctx, module{path: "github.com/opencontainers/runc", version: runcVersion, packages: []string{"."},
		flags: []string{"-tags=seccomp netgo osusergo", "-ldflags=-s -w -extldflags -static -X main.version=" + strings.TrimPrefix(runcVersion, "v")},
		env:   []string{"CGO_ENABLED=1", "CC=" + compiler, "PKG_CONFIG=" + where}}, dir)
}
