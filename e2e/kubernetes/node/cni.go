package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// installCNI puts the reference plugins and the primary network's configuration where a node has them.
func (c *cluster) installCNI() error {
	to, from := c.path("cni", "bin"), c.bins.CNI
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(to, 0o755), os.MkdirAll(c.path("cni", "net.d"), 0o755)); err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue // of who made them
		}
		if err := copyFile(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// network brings the pod network up: the node is Ready when its configuration is there.
func (c *cluster) network(ctx context.Context) error {
	switch {
	case c.Network == "ptp":
		return c.writeConflist("10-ptp.conflist", c.ptp())
	case strings.HasPrefix(c.Network, "flannel-"):
		return c.flannel(ctx)
	case c.Network == "calico":
		return c.calico(ctx)
	case c.Network == "multus":
		return c.multus(ctx)
	default:
		return fmt.Errorf("network %s: it is not known how to start it", c.Network)
	}
}

type object = map[string]any

// cniVersion is the newest one that the runtime's library speaks.
func (c *cluster) cniVersion() string {
	if c.v2() {
		return "1.1.0"
	}
	return "1.0.0"
}

// ptp routes every packet through the node, so that services work between pods of one node without filters on bridges.
func (c *cluster) ptp() object {
	return object{"cniVersion": c.cniVersion(), "name": "k8s", "plugins": []any{
		object{"type": "ptp", "ipMasq": false, "ipam": c.hostLocal()},
		object{"type": "portmap", "capabilities": object{"portMappings": true}},
	}}
}

// hostLocal hands out the addresses of the node's share of the pod network.
func (c *cluster) hostLocal() object {
	ranges := []any{[]any{object{"subnet": "10.244.0.0/24"}}}
	routes := []any{object{"dst": "0.0.0.0/0"}}
	if c.DualStack {
		ranges = append(ranges, []any{object{"subnet": "fd00:244::/64"}})
		routes = append(routes, object{"dst": "::/0"})
	}
	return object{"type": "host-local", "ranges": ranges, "routes": routes}
}

// writeConflist replaces a configuration in one step, as network plugins do.
func (c *cluster) writeConflist(name string, list object) error {
	b, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	path := c.path("cni", "net.d", name)
	if err := os.WriteFile(path+".tmp", b, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(err, out.Close())
	}
	if err := out.Close(); err != nil {
		return err
	}
	return os.Rename(to+".tmp", to)
}
