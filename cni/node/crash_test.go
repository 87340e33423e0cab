package node

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestInstallUntilKilled is the process that TestAnAgentThatIsKilledAnywhereLeavesAValidNode kills.
func TestInstallUntilKilled(t *testing.T) {
	dir := os.Getenv("WEFT_NODE_CRASH_DIR")
	if dir == "" {
		t.Skip("runs only as a child of TestAnAgentThatIsKilledAnywhereLeavesAValidNode")
	}
	fmt.Println("runs")
	for i := 0; ; i++ {
		n := installationIn(dir)
		n.Plugin.AgentSocket = fmt.Sprintf("/run/%d.sock", i) // something to write each time
		if i%3 == 2 {
			n.OwnList = "00-weft.conflist"
		}
		if err := os.WriteFile(n.Binary, fmt.Appendf(nil, "version %d", i), 0o755); err != nil {
			t.Fatal(err)
		}
		if r, err := n.Install(); err != nil || r.Problem != "" {
			t.Fatalf("%+v %v", r, err)
		}
	}
}

func installationIn(dir string) *Installation {
	return &Installation{Binary: filepath.Join(dir, "weft-cni"), BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"), StateDir: filepath.Join(dir, "state")}
}

func TestAnAgentThatIsKilledAnywhereLeavesAValidNode(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for i := range 25 {
		before := map[string]string{"10-flannel.conflist": flannel}
		if i%2 == 1 {
			before = map[string]string{"10-kindnet.conf": single, "20-calico.conflist": calico}
		}
		m := machine{installationIn(t.TempDir()), t}
		for _, dir := range []string{m.ConfDir, m.BinDir} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for name, text := range before {
			m.write(name, text)
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestInstallUntilKilled$")
		cmd.Env = append(os.Environ(), "WEFT_NODE_CRASH_DIR="+filepath.Dir(m.ConfDir))
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err == nil {
			_, err = out.Read(make([]byte, 1))
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(random.IntN(30_000)) * time.Microsecond) // the moment is what is random here
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()

		found, err := scan(m.ConfDir)
		if err != nil || len(found) == 0 {
			t.Fatalf("%v %v", found, err)
		}
		for _, f := range found {
			if f.err != nil {
				t.Errorf("%s: %v", f.name, f.err)
			}
		}
		if err := m.Uninstall(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, files(t, m.ConfDir)); diff != "" {
			t.Errorf("round %d, after uninstall: %s", i, diff)
		}
		if left := files(t, m.BinDir); len(left) > 0 {
			t.Errorf("round %d: binaries left: %v", i, left)
		}
	}
}
