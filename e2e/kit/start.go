package kit

import (
	"os/exec"
	"syscall"

	"github.com/weft-mesh/weft/sandbox/pod/forkthread"
)

// Start starts a command that the kernel kills when this process ends, however it ends.
func Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return forkthread.Do(cmd.Start)
}
