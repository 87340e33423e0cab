package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"

	"github.com/weft-mesh/weft/sandbox/api"
)

// DefaultStateDir holds one directory for each sandbox.
const DefaultStateDir = "/run/weft/sandbox"

// Dir is the state directory of one sandbox. Everything a sandbox has on disk is in it.
type Dir string

func (d Dir) path(elem ...string) string {
	return filepath.Join(append([]string{string(d)}, elem...)...)
}

// Socket is where the daemon listens; NetNS is the node's network namespace,
// bind-mounted so that "nsenter --net=" finds it.
func (d Dir) Socket() string  { return d.path("control.sock") }
func (d Dir) NetNS() string   { return d.path("netns") }
func (d Dir) Log() string     { return d.path("daemon.log") }
func (d Dir) PIDFile() string { return d.path("daemon.pid") }
func (d Dir) Objects() string { return d.path("objects") } // what weftd reads
func (d Dir) CA() string      { return d.path("ca") }      // weftd's; root-cert.pem is the mesh root
func (d Dir) Learned() string { return d.path("learned") } // what workloads have asked weftd for
func (d Dir) Keys() string    { return d.path("keys") }    // the service-account key as JWKS
func (d Dir) Pods() string    { return d.path("run") }     // the pod runner's
func (d Dir) IPAM() string    { return d.path("ipam") }
func (d Dir) options() string { return d.path("options.json") }

// Name is the sandbox's name.
func (d Dir) Name() string { return filepath.Base(string(d)) }

var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)

// Open names the state directory of a sandbox; it need not exist.
func Open(stateDir, name string) (Dir, error) {
	if !validName.MatchString(name) {
		return "", fmt.Errorf("%q is not a name for a sandbox: use at most 32 lower-case letters, digits and '-'", name)
	}
	abs, err := filepath.Abs(stateDir)
	if err != nil {
		return "", err
	}
	d := Dir(filepath.Join(abs, name))
	if len(d.Socket()) > longestSocketPath {
		return "", fmt.Errorf("the path of the state directory %s is too long for a unix socket in it: choose a shorter --state-dir", abs)
	}
	return d, nil
}

// longestSocketPath is sockaddr_un.sun_path without its final zero (unix(7)).
const longestSocketPath = 107

// Names lists the sandboxes below a state directory, running or left over.
func Names(stateDir string) []string {
	entries, err := os.ReadDir(stateDir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() && validName.MatchString(e.Name()) {
			out = append(out, e.Name())
		}
	}
	sort.Strings(out)
	return out
}

// Options are what a sandbox is brought up with. The daemon reads them from its state directory.
type Options struct {
	// Images maps images to programs, beside the built-in ones (see Images).
	Images map[string]string `json:"images,omitempty"`
	// CNIBinDirs are searched for ptp, host-local, loopback, portmap and weft-cni.
	CNIBinDirs []string `json:"cniBinDirs"`
	IPFamily   IPFamily `json:"ipFamily"`
	// WithoutCNI leaves weft-cni out of the chain: pods have a network but no redirection, so injected ones must not start.
	WithoutCNI bool `json:"withoutCNI,omitempty"`
	// WithoutMesh leaves out the control plane: plain pods only.
	WithoutMesh bool `json:"withoutMesh,omitempty"`
	// Mesh are "key=value" settings of MeshConfig, keys with dots for nested fields.
	Mesh []string `json:"mesh,omitempty"`
	// ProxyImage overrides the sidecar's image; empty means weftd's default.
	ProxyImage string `json:"proxyImage,omitempty"`
	// Tethered ends the sandbox when the process that brought it up ends, in whatever way.
	Tethered bool `json:"tethered,omitempty"`
	// Verbose makes the daemon log what it does.
	Verbose bool `json:"verbose,omitempty"`
}

func (d Dir) saveOptions(o Options) error {
	b, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(d.options(), b, 0o644)
}

func (d Dir) loadOptions() (o Options, err error) {
	b, err := os.ReadFile(d.options())
	if err != nil {
		return o, err
	}
	return o, json.Unmarshal(b, &o)
}

// IPFamily chooses the addresses pods and services have.
type IPFamily string

const (
	IPv4 IPFamily = "ipv4"
	IPv6 IPFamily = "ipv6"
	Dual IPFamily = "dual" // pods have both; services are IPv4 unless they ask for more, as in Kubernetes
)

// ParseIPFamily reads the flag --ip-family.
func ParseIPFamily(s string) (IPFamily, error) {
	switch f := IPFamily(strings.ToLower(s)); f {
	case IPv4, IPv6, Dual:
		return f, nil
	}
	return "", fmt.Errorf("--ip-family=%s: use ipv4, ipv6 or dual", s)
}

// addresses is the sandbox's address plan. It is the same in every sandbox: each has a network of its own.
type addresses struct {
	Node     []netip.Prefix // the node's own, one for each family
	Pods     []netip.Prefix
	Services []netip.Prefix
	LBs      []netip.Prefix // of Services of type LoadBalancer
	DNS      []netip.Addr
}

func (f IPFamily) plan() addresses {
	v4 := addresses{
		Node:     []netip.Prefix{netip.MustParsePrefix("10.99.0.2/24")},
		Pods:     []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		Services: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		LBs:      []netip.Prefix{netip.MustParsePrefix("10.97.0.0/24")},
		DNS:      []netip.Addr{netip.MustParseAddr("10.96.0.10")},
	}
	v6 := addresses{
		Node:     []netip.Prefix{netip.MustParsePrefix("fd00:10:99::2/64")},
		Pods:     []netip.Prefix{netip.MustParsePrefix("fd00:10:244::/64")},
		Services: []netip.Prefix{netip.MustParsePrefix("fd00:10:96::/112")},
		LBs:      []netip.Prefix{netip.MustParsePrefix("fd00:10:97::/112")},
		DNS:      []netip.Addr{netip.MustParseAddr("fd00:10:96::a")},
	}
	switch f {
	case IPv4:
		return v4
	case IPv6:
		return v6
	}
	return addresses{
		Node: append(v4.Node, v6.Node...), Pods: append(v4.Pods, v6.Pods...), Services: append(v4.Services, v6.Services...),
		LBs: append(v4.LBs, v6.LBs...), DNS: append(v4.DNS, v6.DNS...),
	}
}

func (a addresses) networks() api.Networks {
	return api.Networks{ClusterIPs: a.Services, LoadBalancers: a.LBs}
}

// nodeName is the one Node of every sandbox.
const nodeName = "sandbox"

// conflist is the network configuration pods get: the reference plugins ptp and
// host-local, portmap for hostPorts, and weft's own as a chained plugin. With ptp all traffic of a
// pod is routed through the node, so that service addresses work between two pods of one node.
func conflist(d Dir, a addresses, withoutCNI bool) ([]byte, error) {
	var ranges, routes []any
	for _, p := range a.Pods {
		ranges = append(ranges, []any{map[string]any{"subnet": p.String()}})
		all := "0.0.0.0/0"
		if !p.Addr().Is4() {
			all = "::/0"
		}
		routes = append(routes, map[string]any{"dst": all})
	}
	plugins := []any{
		map[string]any{"type": "ptp", "ipMasq": false, "ipam": map[string]any{"type": "host-local", "dataDir": d.IPAM(), "ranges": ranges, "routes": routes}},
		map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}, "snat": true},
	}
	if !withoutCNI {
		plugins = append(plugins, map[string]any{"type": "weft-cni", "capabilities": map[string]any{"io.kubernetes.cri.pod-annotations": true}, "stateDir": d.path("weft-cni")})
	}
	return json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "weft-sandbox", "plugins": plugins})
}

// check finds what would make "up" fail later and less clearly: missing
// programs and plugins. All faults are reported at once.
func (o Options) check(images map[string]string) error {
	var faults []error
	need := []string{"ptp", "host-local", "loopback"}
	if !o.WithoutCNI {
		need = append(need, "weft-cni")
	}
	var missing []string
	for _, p := range need {
		if _, err := findIn(o.CNIBinDirs, p); err != nil {
			missing = append(missing, p)
		}
	}
	if len(missing) > 0 {
		faults = append(faults, fmt.Errorf("CNI plugin %s is not in %s: run \"make build tools\", or give its directory with --cni-bin-dir", strings.Join(missing, ", "), strings.Join(o.CNIBinDirs, ":")))
	}
	for image, program := range o.Images {
		if err := executable(program); err != nil {
			faults = append(faults, fmt.Errorf("--image %s=%s: %w", image, program, err))
		}
	}
	if !o.WithoutMesh {
		for image, hint := range map[string]string{weftdImage: "weftd", envoyImage: "envoy"} {
			if images[image] == "" {
				faults = append(faults, fmt.Errorf("the program %s is not beside the weft executable: run \"make build tools\", or give it with --image %s=PATH", hint, image))
			}
		}
	}
	return errors.Join(faults...)
}

func findIn(dirs []string, program string) (string, error) {
	for _, d := range dirs {
		p := filepath.Join(d, program)
		if executable(p) == nil {
			return p, nil
		}
	}
	return "", os.ErrNotExist
}

func executable(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return errors.New("no such program")
	}
	if st.IsDir() || st.Mode()&0o111 == 0 {
		return errors.New("it is not an executable program")
	}
	return nil
}
