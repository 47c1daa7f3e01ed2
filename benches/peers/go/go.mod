module chappe.example/peer

go 1.19
