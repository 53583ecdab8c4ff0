// A client on the schema, with the standard library alone: go run client.go [URL]
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
)

// Exit is what KVM_RUN answers; the fields that this program looks at.
type Exit struct {
	Ret        int     `json:"ret"`
	Errno      *string `json:"errno"`
	ExitReason string  `json:"exit_reason"`
	Cause      *string `json:"cause"`
	Io         *struct {
		Port int    `json:"port"`
		Data string `json:"data"`
	} `json:"io"`
}

func call(method, url string, body, answer any) error {
	sent, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequest(method, url, bytes.NewReader(sent))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode >= 400 {
		var problem struct{ Errno, Detail string }
		_ = json.NewDecoder(response.Body).Decode(&problem)
		return fmt.Errorf("%s %s: %s: %s", method, url, problem.Errno, problem.Detail)
	}
	return json.NewDecoder(response.Body).Decode(answer)
}

func main() {
	url := "http://localhost:8000"
	if len(os.Args) > 1 {
		url = os.Args[1]
	}
	var done any
	var exit Exit
	steps := []any{[]any{"out", "0x3f8", 65}, []any{"hlt"}}
	for _, err := range []error{
		call("PUT", url+"/vcpu/0/program", steps, &done),
		call("POST", url+"/vcpu/0/run", map[string]any{}, &exit),
	} {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	fmt.Println(exit.ExitReason, exit.Io.Data)
}
