package programs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

var staging = regexp.MustCompile(`=> \./staging/src/(k8s\.io/[a-z-]+)`)

// Kubernetes makes all programs of a version of Kubernetes, kubectl and etcd excepted: all versions share these, which speak to the
// version before theirs and the one after it as well.
func (b *Builder) Kubernetes(ctx context.Context, version string) (dir string, err error) {
	return b.once(ctx, "kubernetes/"+version, version, func(dir string) error {
		major, minor, _ := strings.Cut(version, ".")
		minor, _, _ = strings.Cut(minor, ".")
		stamp := "k8s.io/component-base/version"
		m := module{path: "k8s.io/kubernetes", version: "v" + version,
			packages: []string{"./cmd/kube-apiserver", "./cmd/kubelet", "./cmd/kube-controller-manager", "./cmd/kube-scheduler", "./cmd/kube-proxy"},
			flags:    []string{fmt.Sprintf("-ldflags=-s -w -X %s.gitVersion=v%s -X %[1]s.gitMajor=%s -X %[1]s.gitMinor=%s", stamp, version, major, minor)},
			// The staging modules are not in the module's archive; the same code is published as k8s.io/NAME.
			edit: func(s string) string {
				return staging.ReplaceAllString(s, "=> $1 v0."+strings.TrimPrefix(version, "1."))
			},
		}
		if err := b.compile(ctx, m, dir); err != nil {
			return err
		}
		for _, shared := range []func(context.Context) (string, error){b.etcd, b.kubectl} {
			program, err := shared(ctx)
			if err != nil {
				return err
			}
			here := filepath.Join(dir, filepath.Base(program))
			if err := os.Remove(here); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err := os.Link(program, here); err != nil {
				return err
			}
		}
		return nil
	})
}

// etcd makes the one that Kubernetes 1.37 is tested with.
func (b *Builder) etcd(ctx context.Context) (program string, err error) {
	const version = "v3.7.0"
	dir, err := b.once(ctx, "etcd", version, func(dir string) error {
		return b.compile(ctx, module{path: "go.etcd.io/etcd/server/v3", version: version, packages: []string{"."}, flags: []string{"-ldflags=-s -w"},
			program: "etcd", ours: true, edit: withoutReplacements, wrap: func(string) (string, error) { return etcdMain, nil }}, dir)
	})
	return filepath.Join(dir, "etcd"), err
}

const etcdMain = `package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
`

// kubectl makes the one of the newest version, from the module that we have anyway.
func (b *Builder) kubectl(ctx context.Context) (program string, err error) {
	const version = "v0.37.2"
	dir, err := b.once(ctx, "kubectl", version, func(dir string) error {
		return b.compile(ctx, module{path: "k8s.io/kubectl", version: version, packages: []string{"."},
			flags: []string{"-ldflags=-s -w -X k8s.io/component-base/version.gitVersion=v1" + strings.TrimPrefix(version, "v0")},
			ours:  true, wrap: func(string) (string, error) { return kubectlMain, nil }}, dir)
	})
	return filepath.Join(dir, "kubectl"), err
}

// kubectlMain is that of k8s.io/kubernetes/cmd/kubectl, without its early look at verbosity.
const kubectlMain = `package main

import (
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"

	_ "k8s.io/client-go/plugin/pkg/client/auth"
)

func main() {
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err)
	}
}
`

// withoutReplacements drops what only works in the repository that the module comes from: its other modules are published.
func withoutReplacements(goMod string) string { return replacements.ReplaceAllString(goMod, "") }

var replacements = regexp.MustCompile(`(?ms)^replace (\(.*?^\)|[^(\n]*)$`)
