// testapp is the workload of the scenario tests: `testapp serve` answers over every
// protocol the mesh carries and misbehaves on request, `testapp call` is the client that
// prints what it saw as JSON. One static binary, because the tests run it in pods that
// hold nothing else.
package main

import (
	"fmt"
	"os"
)

func main() {
	var err error
	switch {
	case len(os.Args) < 2 || os.Args[1] == "serve":
		err = serve()
	case os.Args[1] == "call":
		err = call(os.Args[2:])
	case os.Args[1] == "hold":
		err = hold()
	default:
		err = fmt.Errorf("usage: testapp serve | call [flags] URL | hold")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testapp: "+err.Error())
		os.Exit(1)
	}
}
