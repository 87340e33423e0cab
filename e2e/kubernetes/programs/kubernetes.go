package programs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

var staging = regexp.MustCompile(`=> \./staging/src/(k8s\.io/[a-z-]+)`)

// Kubernetes makes all programs of a version of Kubernetes, and the etcd that this version is tested with.
func (b *Builder) Kubernetes(ctx context.Context, version string) (dir string, err error) {
	return b.once(ctx, "kubernetes/"+version, version, func(dir string) error {
		major, minor, _ := strings.Cut(version, ".")
		minor, _, _ = strings.Cut(minor, ".")
		stamp := "k8s.io/component-base/version"
		m := module{path: "k8s.io/kubernetes", version: "v" + version,
			packages: []string{"./cmd/kube-apiserver", "./cmd/kubelet", "./cmd/kube-controller-manager", "./cmd/kube-scheduler", "./cmd/kube-proxy", "./cmd/kubectl"},
			flags:    []string{fmt.Sprintf("-ldflags=-s -w -X %s.gitVersion=v%s -X %[1]s.gitMajor=%s -X %[1]s.gitMinor=%s", stamp, version, major, minor)},
			// The staging modules are not in the module's archive; the same code is published as k8s.io/NAME.
			edit: func(s string) string {
				return staging.ReplaceAllString(s, "=> $1 v0."+strings.TrimPrefix(version, "1."))
			},
		}
		if err := b.compile(ctx, m, dir); err != nil {
			return err
		}
		m.packages = []string{"go.etcd.io/etcd/server/v3"}
		m.flags = []string{"-ldflags=-s -w"}
		if err := b.compile(ctx, m, dir); err != nil {
			return err
		}
		return os.Rename(filepath.Join(dir, "server"), filepath.Join(dir, "etcd"))
	})
}
