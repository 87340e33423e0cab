package cni_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
)

// plugin runs the plugin by itself, as the CNI spec's protocol says, and gives its standard output.
func (n *node) plugin(command string, s sandbox, stdin string) (string, error) {
	return n.exec(command, s, stdin, filepath.Join(n.path[1], "weft-cni"))
}

func (n *node) exec(command string, s sandbox, stdin string, argv ...string) (string, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+s.args.ContainerID, "CNI_NETNS="+s.args.NetNS, "CNI_IFNAME="+s.args.IfName,
		"CNI_PATH="+n.path[0], "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart")
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout = bytes.NewReader([]byte(stdin)), &out
	var err error
	n.Do(func() { err = cmd.Run() })
	return out.String(), err
}
