package programs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// containerd makes containerd, ctr, the shim and runc of a version: 1.x are Debian's, as its users have them, 2.x are compiled.
func (b *Builder) containerd(ctx context.Context, version string) (dir string, err error) {
	stamp := version
	compiled := strings.HasPrefix(version, "2.")
	if compiled {
		stamp += " runc " + runcVersion
	}
	return b.once(ctx, "containerd/"+version, stamp, func(dir string) error {
		if compiled {
			return errors.Join(b.runc(ctx, dir), b.compile(ctx, module{path: "github.com/containerd/containerd/v2", version: "v" + version,
				packages: []string{"./cmd/containerd", "./cmd/containerd-shim-runc-v2", "./cmd/ctr"}, flags: []string{"-ldflags=-s -w"}}, dir))
		}
		if err := b.debian(ctx, dir, "runc", "containerd"); err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, filepath.Join(dir, "containerd"), "--version").Output()
		if err == nil && !bytes.Contains(out, []byte(" "+version)) {
			err = fmt.Errorf("this distribution's containerd is %q; a cluster with containerd %s needs Debian 12 (or run Kubernetes 1.37.1, which brings its own)", bytes.TrimSpace(out), version)
		}
		return err
	})
}

// debian puts the programs of Debian packages into dir. Nothing is installed on the machine: the packages are downloaded and
// unpacked.
func (b *Builder) debian(ctx context.Context, dir string, packages ...string) error {
	tmp, err := os.MkdirTemp(dir, ".debian-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := b.unpack(ctx, tmp, packages...); err != nil {
		return err
	}
	for _, bin := range []string{"root/usr/bin", "root/usr/sbin", "root/bin", "root/sbin"} {
		entries, err := os.ReadDir(filepath.Join(tmp, bin))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := os.Rename(filepath.Join(tmp, bin, e.Name()), filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// unpack downloads Debian packages into tmp, and unpacks them below tmp/root.
func (b *Builder) unpack(ctx context.Context, tmp string, packages ...string) error {
	// apt drops its privileges to download.
	if err := os.Chmod(tmp, 0o777); err != nil {
		return err
	}
	get := append([]string{"download", "-qq"}, packages...)
	if err := b.run(ctx, tmp, nil, "apt-get", get...); err != nil {
		if err := b.run(ctx, tmp, nil, "apt-get", "update", "-qq"); err != nil {
			return err
		}
		if err := b.run(ctx, tmp, nil, "apt-get", get...); err != nil {
			return err
		}
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range debs {
		if err := b.run(ctx, tmp, nil, "dpkg-deb", "-x", deb, "root"); err != nil {
			return err
		}
	}
	return nil
}

// netfilter returns the directory of iptables, nft and their libraries, and nothing where the machine has its own.
func (b *Builder) netfilter(ctx context.Context) (dir string, err error) {
	_, noIptables := exec.LookPath("iptables")
	_, noNft := exec.LookPath("nft")
	if noIptables == nil && noNft == nil {
		return "", nil
	}
	unlock, err := b.lock(ctx, "netfilter")
	if err != nil {
		return "", err
	}
	defer unlock()
	return b.path("bin", "netfilter"), b.run(ctx, b.root, nil, "make", "-s", "bin/netfilter/complete")
}
