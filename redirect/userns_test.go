package redirect

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/weft-mesh/weft/e2e/kit"
)

// inUserNamespace is set in the environment of the child that TestAPodInAUserNamespace starts: this test binary again.
const inUserNamespace = "WEFT_TEST_IN_USER_NAMESPACE"

func TestMain(m *testing.M) {
	if os.Getenv(inUserNamespace) != "" {
		callOwnPod()
		return
	}
	os.Exit(m.Run())
}

// callOwnPod waits until the rules are there, then connects to the pod's own address and says who answered.
func callOwnPod() {
	inbound, err := listen(PortInbound, false)
	if err != nil {
		fmt.Println(err)
		return
	}
	app, err := listen(8080, false)
	if err != nil {
		fmt.Println(err)
		return
	}
	for who, l := range map[string]*net.TCPListener{"inbound": inbound, "app": app} {
		go func() {
			for {
				c, err := l.AcceptTCP()
				if err != nil {
					return
				}
				fmt.Fprintln(c, who)
				c.Close()
			}
		}()
	}
	fmt.Println("listening")
	bufio.NewReader(os.Stdin).ReadString('\n')
	fmt.Println(ask("tcp", "", podV4+":8080"))
}

// With hostUsers: false (Kubernetes user namespaces) UID 1337 of the pod is another UID on the node. The rules must mean the pod's.
func TestAPodInAUserNamespaceIsRedirectedByItsOwnUIDs(t *testing.T) {
	kit.Root(t)
	binary, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	for _, b := range backends(t) {
		for uid, want := range map[uint32]string{ProxyUID: "inbound", 1000: "app"} {
			t.Run(fmt.Sprintf("%s/uid%d", b.Name(), uid), func(t *testing.T) {
				// Through the open file: the directory of a test binary is closed to other users.
				cmd := exec.Command("/proc/self/fd/3")
				cmd.ExtraFiles = []*os.File{binary}
				cmd.Env = append(os.Environ(), inUserNamespace+"=1")
				cmd.Stderr = os.Stderr
				ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 200000, Size: 65536}}
				cmd.SysProcAttr = &syscall.SysProcAttr{
					Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET, UidMappings: ids, GidMappings: ids,
					Credential: &syscall.Credential{Uid: uid, Gid: uid},
				}
				stdin, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				stdout, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := kit.Start(cmd); err != nil {
					t.Fatalf("start in a user namespace: %v", err)
				}
				defer cmd.Wait()
				defer stdin.Close()
				lines := bufio.NewReader(stdout)
				if line, err := lines.ReadString('\n'); line != "listening\n" {
					t.Fatalf("the child says %q, %v", line, err)
				}
				err = InNetNS(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid), func() error {
					addAddr(t, mustLink(t, "lo"), podV4+"/32")
					return b.Apply(Default())
				})
				if b.Name() == IPTables {
					if !errors.Is(err, errUserNamespace) {
						t.Errorf("apply: %v, want a refusal that names the remedy", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintln(stdin, "go")
				if line, err := lines.ReadString('\n'); strings.TrimSpace(line) != want {
					t.Errorf("the connection reached %q (%v), want %q", line, err, want)
				}
			})
		}
	}
}
