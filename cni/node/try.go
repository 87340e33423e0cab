package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// Try runs the installed binary as a runtime would, with STATUS (CNI spec 1.1 section 4): the plugin then redirects a network namespace that exists only for
// that moment and reads the rules back. So a kernel without what the rules need, or a binary of another architecture, is found before a pod
// finds it. It needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
func (n *Installation) Try(ctx context.Context) error {
	var conf map[string]any
	if err := json.Unmarshal(n.Plugin.JSON(), &conf); err != nil {
		return err
	}
	conf["cniVersion"], conf["name"] = "1.1.0", "weft-node"
	in, err := json.Marshal(conf)
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	path := filepath.Join(n.BinDir, PluginType)
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = append(os.Environ(), "CNI_COMMAND=STATUS", "CNI_PATH="+n.BinDir)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout = bytes.NewReader(in), &out
	if err := cmd.Run(); err != nil {
		var said types.Error
		if json.Unmarshal(out.Bytes(), &said) == nil && said.Msg != "" {
			err = &said
		}
		return fmt.Errorf("%s does not work on this node: %w", path, err)
	}
	return nil
}
