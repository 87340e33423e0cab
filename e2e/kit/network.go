package kit

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// inPrivateNetwork marks the child process that PrivateNetwork starts.
const inPrivateNetwork = "WEFT_TEST_PRIVATE_NETWORK"

// PrivateNetwork runs the tests of a package in a network namespace of their
// own that has nothing but a loopback: a proxy's well-known ports are free there,
// whatever else this machine runs. It is the body of TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(kit.PrivateNetwork(m)) }
//
// Without root the tests run where they are; those that need the namespace call Root.
func PrivateNetwork(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run()
	}
	if os.Getenv(inPrivateNetwork) != "" {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "bring up the loopback:", err)
			return 1
		}
		return m.Run()
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inPrivateNetwork+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, "run the tests in a network namespace:", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}
