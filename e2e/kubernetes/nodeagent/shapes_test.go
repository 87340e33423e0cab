package nodeagent

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// ipam gives a test's network the nth ten addresses of the node's pods, from .100 on, so that networks never give the same one twice.
func (c *cluster) ipam(kind string, n int) string {
	c.t.Helper()
	p, err := netip.ParsePrefix(c.PodCIDR)
	if err != nil {
		c.t.Fatal(err)
	}
	a := p.Masked().Addr().As4()
	from, to := a, a
	from[3], to[3] = byte(100+10*n), byte(109+10*n)
	return fmt.Sprintf(`"ipam":{"type":%q,"ranges":[[{"subnet":%q,"rangeStart":%q,"rangeEnd":%q}]],"routes":[{"dst":"0.0.0.0/0"}]}`, kind, c.PodCIDR, netip.AddrFrom4(from), netip.AddrFrom4(to))
}

// list is a network plugin's usual file.
func (c *cluster) list(name string, n int) string {
	return fmt.Sprintf(`{
  "name": %q,
  "cniVersion": "1.0.0",
  "plugins": [
    {"type": "ptp", %s},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`, name, c.ipam("host-local", n))
}

// calico is the file that calico-node's install-cni writes (with the reference plugins behind its plugins' names).
func (c *cluster) calico(n int) string {
	return fmt.Sprintf(`{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "calico",
      "log_level": "info",
      "log_file_path": "/var/log/calico/cni/cni.log",
      "datastore_type": "kubernetes",
      "nodename": %q,
      "mtu": 0,
      %s,
      "policy": {
          "type": "k8s"
      },
      "kubernetes": {
          "kubeconfig": "/etc/cni/net.d/calico-kubeconfig"
      }
    },
    {
      "type": "portmap",
      "snat": true,
      "capabilities": {"portMappings": true}
    },
    {
      "type": "bandwidth",
      "capabilities": {"bandwidth": true}
    }
  ]
}`, c.Node, c.ipam("calico-ipam", n))
}

// plugin gives a reference plugin a further name, until the test ends.
func (c *cluster) plugin(name, reference string) {
	c.t.Helper()
	path := filepath.Join(c.BinDir, name)
	if _, err := os.Stat(path); err == nil {
		return
	}
	program, err := os.ReadFile(filepath.Join(c.BinDir, reference))
	if err == nil {
		err = os.WriteFile(path, program, 0o755)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := os.Remove(path); err != nil {
			c.t.Error(err)
		}
	})
}

// TestItComesAndGoesWithoutATraceOnEveryShapeOfNetwork: new pods are redirected once the agent is ready, and after an uninstall the node's files are the same
// bytes as before.
func TestItComesAndGoesWithoutATraceOnEveryShapeOfNetwork(t *testing.T) {
	for _, shape := range []struct {
		name   string
		files  func(*cluster) map[string]string // nil: the node's own
		values map[string]any
		entry  string // the file with our entry
	}{
		{name: "the node's own network"},
		{name: "a single plugin's conf", entry: "10-single.conflist", files: func(c *cluster) map[string]string {
			return map[string]string{"10-single.conf": fmt.Sprintf("{\"name\":\"single\",\"cniVersion\":\"1.0.0\",\"type\":\"ptp\",%s}\n", c.ipam("host-local", 0))}
		}},
		{name: "Calico's list", entry: "10-calico.conflist", files: func(c *cluster) map[string]string {
			return map[string]string{"10-calico.conflist": c.calico(1), "calico-kubeconfig": "# secret\n"}
		}},
		{name: "a second network that sorts later", entry: "10-first.conflist", files: func(c *cluster) map[string]string {
			return map[string]string{"10-first.conflist": c.list("first", 2), "20-second.conflist": c.list("second", 3)}
		}},
		{name: "a list of our own", entry: "00-weft.conflist", values: map[string]any{"chained": false}, files: func(c *cluster) map[string]string {
			return map[string]string{"10-own.conflist": c.list("own", 4)}
		}},
	} {
		t.Run(shape.name, func(t *testing.T) {
			c := open(t)
			c.plugin("calico", "ptp")
			c.plugin("calico-ipam", "host-local")
			if shape.files != nil {
				c.only(shape.files(c))
			}
			files, programs := c.conf(), c.programs()

			c.install(shape.values)
			if shape.entry != "" {
				c.chained(shape.entry)
			}
			ns := c.namespace()
			redirected := c.start(c.app(ns, "redirected"))
			c.sees(redirected, nothing)
			c.never(redirected)
			stranger := c.app(ns, "stranger")
			stranger.Annotations = nil
			c.sees(c.start(stranger), outside)

			c.uninstall()
			if now := c.conf(); !maps.Equal(now, files) {
				t.Errorf("the network configurations are %q, and were %q", now, files)
			}
			if now := c.programs(); !slices.Equal(now, programs) {
				t.Errorf("the plugins are %q, and were %q", now, programs)
			}
			c.sees(c.start(c.app(ns, "later")), outside)
			c.sees(redirected, nothing) // what was redirected stays so
		})
	}
}

// programs are the names in the runtime's directory of plugins.
func (c *cluster) programs() (names []string) {
	c.t.Helper()
	entries, err := os.ReadDir(c.BinDir)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
