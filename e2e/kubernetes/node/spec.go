package node

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Addresses of every cluster. Each has a network namespace of its own, so all are the same.
const (
	NodeName = "n1"
	NodeIP   = "10.99.0.2"
	DNSIP    = "10.96.0.10"

	nodeIP6     = "fd00:99::2"
	apiIP       = "10.96.0.1" // of Service kubernetes.default
	podCIDR     = "10.244.0.0/16"
	podCIDR6    = "fd00:244::/56"
	serviceIPs  = "10.96.0.0/16"
	serviceIPs6 = "fd00:96::/112"
)

// Versions are the Kubernetes versions that can be run, with the containerd that each is run with.
var Versions = map[string]string{
	"1.36.3": "1.6.20", // Debian's package
	"1.37.1": "2.4.2",  // built from its Go module
}

// Networks are the pod networks that can be asked for.
var Networks = []string{"ptp", "flannel-host-gw", "flannel-vxlan", "calico", "multus"}

// ProxyModes of kube-proxy.
var ProxyModes = []string{"nftables", "iptables"}

// Spec is a cluster that is wanted.
type Spec struct {
	Name      string // of the network namespace (weft-NAME) and the control group (/weft-NAME)
	Dir       string // everything that the cluster writes; empty means weft-NAME in the directory for temporary files
	Version   string // of Kubernetes: a key of Versions
	Network   string // one of Networks
	ProxyMode string // one of ProxyModes
	DualStack bool
	Images    []string // archives to load
}

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// Complete fills in what is left out and refuses what cannot be run.
func (s *Spec) Complete() error {
	if !validName.MatchString(s.Name) {
		return fmt.Errorf("--name %q: 1 to 32 lower-case letters, digits and dashes are needed", s.Name)
	}
	if s.Version == "" {
		s.Version = "1.36.3"
	}
	if _, ok := Versions[s.Version]; !ok {
		return fmt.Errorf("--version %q: this can run %s", s.Version, strings.Join(sortedKeys(Versions), " and "))
	}
	if s.Network == "" {
		s.Network = Networks[0]
	}
	if !slices.Contains(Networks, s.Network) {
		return fmt.Errorf("--network %q: this can run %s", s.Network, strings.Join(Networks, ", "))
	}
	if s.ProxyMode == "" {
		s.ProxyMode = ProxyModes[0]
	}
	if !slices.Contains(ProxyModes, s.ProxyMode) {
		return fmt.Errorf("--proxy-mode %q: this can run %s", s.ProxyMode, strings.Join(ProxyModes, ", "))
	}
	dir, err := DirOf(s.Name, s.Dir)
	if err != nil {
		return err
	}
	s.Dir = dir
	for _, private := range privateTrees {
		if dir == private || strings.HasPrefix(dir, private+"/") {
			return fmt.Errorf("--dir %s: it must not be below %s, which the node replaces by its own", dir, private)
		}
	}
	return nil
}

// DirOf is the directory of a cluster: dir when it is given, else weft-NAME among the temporary files.
func DirOf(name, dir string) (string, error) {
	if dir == "" {
		dir = filepath.Join(os.TempDir(), "weft-"+name)
	}
	return filepath.Abs(dir)
}

func (s *Spec) containerd() string { return Versions[s.Version] }

// v2 says whether the container runtime is containerd 2.
func (s *Spec) v2() bool { return strings.HasPrefix(s.containerd(), "2.") }

func (s *Spec) nodeIPs() string {
	if s.DualStack {
		return NodeIP + "," + nodeIP6
	}
	return NodeIP
}

func (s *Spec) podCIDRs() string {
	if s.DualStack {
		return podCIDR + "," + podCIDR6
	}
	return podCIDR
}

func (s *Spec) serviceCIDRs() string {
	if s.DualStack {
		return serviceIPs + "," + serviceIPs6
	}
	return serviceIPs
}

func sortedKeys(m map[string]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
