// A server of this protocol in Go: what a user might write instead of taking Chappe, for
// scripts/bench. It does the work of the limit server for each message: check the CRC,
// copy the body, compute the CRC again, send. A goroutine for each connection, buffered
// both ways, flushed when nothing more is buffered to read.
//
//	main [ADDRESS]       prints `ready ADDRESS`, runs until killed
package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
)

const (
	headerBytes = 8
	bufferBytes = 64 * 1024
)

func serve(connection net.Conn) {
	defer connection.Close()
	reader := bufio.NewReaderSize(connection, bufferBytes)
	writer := bufio.NewWriterSize(connection, bufferBytes)
	frame := make([]byte, bufferBytes)
	for {
		header := frame[:headerBytes]
		if _, err := io.ReadFull(reader, header); err != nil {
			return
		}
		length := int(binary.BigEndian.Uint16(header))
		if length < headerBytes {
			return
		}
		body := frame[headerBytes:length]
		if _, err := io.ReadFull(reader, body); err != nil {
			return
		}
		if crc32.ChecksumIEEE(body) != binary.BigEndian.Uint32(header[4:]) {
			return
		}
		// The header goes out first, so the copy is that into the writer's buffer.
		binary.BigEndian.PutUint32(header[4:], crc32.ChecksumIEEE(body))
		if _, err := writer.Write(frame[:length]); err != nil {
			return
		}
		if reader.Buffered() == 0 {
			if err := writer.Flush(); err != nil {
				return
			}
		}
	}
}

func main() {
	address := "127.0.0.1:0"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("ready", listener.Addr())
	for {
		connection, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go serve(connection)
	}
}
