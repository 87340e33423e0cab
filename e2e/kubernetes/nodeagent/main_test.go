package nodeagent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// directory names the cluster's; entered says that this process is in the node's network namespace already.
const (
	directory = "WEFT_E2E_CLUSTER"
	entered   = "WEFT_E2E_CLUSTER_ENTERED"
)

// node is what the cluster's maker says about its node (DIR/node.json).
type node struct {
	Dir string `json:"-"`

	Node          string `json:"node"`
	Root          string `json:"root"`          // the node's files, seen from here
	NetNS         string `json:"netns"`         // the node's network namespace
	ConfDir       string `json:"cniConfDir"`    // the node's /etc/cni/net.d, seen from here
	BinDir        string `json:"cniBinDir"`     // the node's /opt/cni/bin, seen from here
	RuntimeSocket string `json:"runtimeSocket"` // CRI, seen from here
	PodNetNSDir   string `json:"podNetnsDir"`   // where containerd mounts pods' network namespaces, seen from here
	Kubernetes    string `json:"kubernetes"`
	Containerd    string `json:"containerd"`
	Network       string `json:"network"`
	NodeIP        string `json:"nodeIP"`
	PodCIDR       string `json:"podCIDR"`
	DualStack     bool   `json:"dualStack"`
}

func TestMain(m *testing.M) {
	if err := enter(); err != nil {
		fmt.Fprintln(os.Stderr, "the node of "+directory+": "+err.Error())
		os.Exit(1)
	}
	code := m.Run()
	if err := forget(); err != nil {
		fmt.Fprintln(os.Stderr, "cleaning up:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// forget deletes the agent's objects from the API server, so that whoever installs the mesh next finds nothing.
func forget() error {
	if once.chart == nil {
		return nil
	}
	cmd := exec.Command(filepath.Join(os.Getenv(directory), "kubectl"), "delete", "--ignore-not-found", "-f", "-")
	cmd.Stdin = bytes.NewReader(once.chart)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl delete: %w: %s", err, out)
	}
	return nil
}

// enter starts this program again inside the node's network namespace, so that everything in it dials and listens as the node does.
func enter() error {
	if os.Getenv(directory) == "" || os.Getenv(entered) != "" {
		return nil
	}
	n, err := readNode()
	if err != nil {
		return err
	}
	ns, err := os.Open(n.NetNS)
	if err != nil {
		return err
	}
	runtime.LockOSThread() // exec keeps the namespace of the thread that calls it
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), entered+"=1"))
}

func readNode() (n node, err error) {
	n.Dir = os.Getenv(directory)
	text, err := os.ReadFile(filepath.Join(n.Dir, "node.json"))
	if err == nil {
		err = json.Unmarshal(text, &n)
	}
	return n, err
}
