package programs

import (
	"context"
	"os"
	"path/filepath"
	"strings"
)

// CNI makes the reference network plugins, as the Makefile says, in the version of our go.mod.
func (b *Builder) CNI(ctx context.Context) (dir string, err error) {
	unlock, err := b.lock(ctx, "cni")
	if err != nil {
		return "", err
	}
	defer unlock()
	return b.path("bin", "cni"), b.run(ctx, b.root, nil, "make", "-s", "bin/cni/portmap")
}

// coreDNS makes the cluster's name server, with only the plugins that our Corefile has: the real one, for a quarter of the
// compilation.
func (b *Builder) coreDNS(ctx context.Context) (program string, err error) {
	const version = "v1.14.0"
	dir, err := b.once(ctx, "coredns", version, func(dir string) error {
		return b.compile(ctx, module{path: "github.com/coredns/coredns", version: version, packages: []string{"."}, flags: []string{"-ldflags=-s -w"}, ours: true,
			wrap: func(string) (string, error) { return coreDNSMain, nil }}, dir)
	})
	return filepath.Join(dir, "coredns"), err
}

const coreDNSMain = `package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

// The order of the plugins a query passes: what kubernetes does not know, template refuses.
func init() { dnsserver.Directives = []string{"health", "ready", "errors", "kubernetes", "template"} }

func main() { coremain.Run() }
`

// flannel makes flanneld from upstream's main.go without two of its backends: udp needs a C compiler, and one cloud's SDK is pinned to
// a version that is not published any more.
func (b *Builder) flannel(ctx context.Context) (program string, err error) {
	const version = "v0.28.4"
	dir, err := b.once(ctx, "flannel", version, func(dir string) error {
		return b.compile(ctx, module{path: "github.com/flannel-io/flannel", version: version, packages: []string{"."}, ours: true,
			flags: []string{"-ldflags=-s -w -X github.com/flannel-io/flannel/pkg/version.Version=" + version},
			edit:  func(s string) string { return without(s, "/tencentcloud/") },
			wrap: func(source string) (string, error) {
				main, err := os.ReadFile(filepath.Join(source, "main.go"))
				return without(string(main), `backend/tencentvpc"`, `backend/udp"`), err
			}}, dir)
	})
	return filepath.Join(dir, "flannel"), err
}

// multus makes the plugin that calls several plugins for a pod, and the daemon that configures it.
func (b *Builder) multus(ctx context.Context) (dir string, err error) {
	const version = "v4.2.2"
	return b.once(ctx, "multus", version, func(dir string) error {
		return b.compile(ctx, module{path: "gopkg.in/k8snetworkplumbingwg/multus-cni.v4", version: version,
			packages: []string{"./cmd/multus", "./cmd/thin_entrypoint"}, flags: []string{"-ldflags=-s -w"}, ours: true}, dir)
	})
}

// without returns the text without the lines that hold one of the words.
func without(text string, words ...string) string {
	var kept strings.Builder
next:
	for line := range strings.Lines(text) {
		for _, w := range words {
			if strings.Contains(line, w) {
				continue next
			}
		}
		kept.WriteString(line)
	}
	return kept.String()
}
