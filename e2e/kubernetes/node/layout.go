package node

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// layout is where a cluster's files are. All paths are the machine's.
type layout struct{ dir string }

func (l layout) path(elem ...string) string {
	return filepath.Join(append([]string{l.dir}, elem...)...)
}

func (l layout) log(process string) string { return l.path("log", process+".log") }
func (l layout) pki(file string) string    { return l.path("pki", file) }

// What is at the usual places of a node, as its processes see it.
const (
	cniConfDir       = "/etc/cni/net.d"
	cniBinDir        = "/opt/cni/bin"
	containerdSocket = "/run/containerd/containerd.sock"
	podNetNSDir      = "/run/netns"
)

// privateTrees are replaced in the node's mount namespace: /run by an empty file system, the others by an
// overlay whose changes are the cluster's.
var privateTrees = []string{"/run", "/var/run", "/etc", "/opt", "/var/lib"}

// binds are directories of the cluster that are at a usual place too, so that both sides can edit them.
func (l layout) binds() map[string]string {
	return map[string]string{
		cniConfDir:            l.path("cni", "net.d"),
		cniBinDir:             l.path("cni", "bin"),
		"/var/lib/kubelet":    l.path("kubelet"),
		"/var/lib/containerd": l.path("containerd"),
		"/run/flannel":        l.path("flannel"),
		serviceAccount:        l.path("serviceaccount"),
		"/var/log":            l.path("varlog"), // a kubelet removes the logs of pods that it does not know: other clusters'
	}
}

// netnsPath is where ip(8) looks for the network namespace of a cluster.
func netnsPath(name string) string { return "/run/netns/weft-" + name }

// Description is node.json of a cluster: what a test needs to know of the node. Root is a prefix by which the machine
// reaches the node's own files: Root + "/run/netns/..." is a pod's network namespace.
type Description struct {
	Name          string `json:"name"`
	Node          string `json:"node"`
	NetNS         string `json:"netns"`
	InitPID       int    `json:"initPID"`
	InitStarted   uint64 `json:"initStarted"` // the process's start time (proc(5), field 22 of stat): a PID alone may be another's by now
	Root          string `json:"root"`
	CNIConfDir    string `json:"cniConfDir"`
	CNIBinDir     string `json:"cniBinDir"`
	RuntimeSocket string `json:"runtimeSocket"`
	PodNetNSDir   string `json:"podNetnsDir"`
	LogDir        string `json:"logDir"`
	Kubernetes    string `json:"kubernetes"`
	Containerd    string `json:"containerd"`
	Network       string `json:"network"`
	ProxyMode     string `json:"proxyMode"`
	NodeIP        string `json:"nodeIP"`
	PodCIDR       string `json:"podCIDR"`
	DualStack     bool   `json:"dualStack"`
}

// Describe reads the description of the cluster in a directory.
func Describe(dir string) (*Description, error) {
	b, err := os.ReadFile(layout{dir}.path("node.json"))
	if err != nil {
		return nil, err
	}
	d := &Description{}
	if err := json.Unmarshal(b, d); err != nil {
		return nil, fmt.Errorf("%s/node.json: %w", dir, err)
	}
	return d, nil
}

// started returns the start time of a process in clock ticks since boot, and whether it runs (a zombie does not).
func started(pid int) (ticks uint64, running bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	_, rest, ok := strings.Cut(string(b), ") ") // after the name, which may hold anything
	if !ok {
		return 0, false
	}
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0, false
	}
	ticks, err = strconv.ParseUint(fields[19], 10, 64)
	return ticks, err == nil
}

// alive says whether the cluster's first process still runs.
func (d *Description) alive() bool {
	t, running := started(d.InitPID)
	return running && t == d.InitStarted
}
