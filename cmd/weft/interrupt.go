package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// announceInterrupt says what Ctrl-C does to a verb that changes a cluster, and lets a second one end the program at once: an API server that
// does not answer would otherwise hold it. Call the result when the verb is done.
func announceInterrupt(cmd *cobra.Command) (done func() bool) {
	return context.AfterFunc(cmd.Context(), func() {
		fmt.Fprintln(cmd.ErrOrStderr(), "\ninterrupting: the Helm release being written is finished first (a second Ctrl-C leaves it half done)")
		signal.Reset(os.Interrupt, syscall.SIGTERM)
	})
}
