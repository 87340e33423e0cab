package programs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/weft-mesh/weft/e2e/kubernetes/node"
)

// Node makes what a node of a spec runs.
func (b *Builder) Node(ctx context.Context, spec node.Spec) (node.Bins, error) {
	bins := node.Bins{Kubernetes: b.path("bin", "kubernetes", spec.Version), CNI: b.path("bin", "cni")}
	if spec.Version == "1.37.1" {
		bins.Containerd = b.path("bin", "containerd-pre")
	}
	for _, p := range []string{filepath.Join(bins.Kubernetes, "kubelet"), filepath.Join(bins.CNI, "portmap")} {
		if _, err := os.Stat(p); err != nil {
			return bins, fmt.Errorf("%w: build it first", err)
		}
	}
	return bins, nil
}
